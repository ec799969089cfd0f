"""Outlier Exposure (Hendrycks et al., ICLR 2019): auxiliary outliers are pushed to the uniform prediction."""

from __future__ import annotations

from openood_dream.losses import outlier_exposure
from openood_dream.trainers.base import Batch, OutlierTrainer, Terms, trainer
from openood_dream.trainers.settings import OE


@trainer("oe", OE)
class OETrainer(OutlierTrainer):
    """CE + lambda_oe * outlier_exposure."""

    settings: OE

    def terms(self, *batches: Batch) -> Terms:
        batch, outliers = batches
        y = self.labels(batch)
        id_logits, outlier_logits = self.logits(batch, outliers).tensor_split([len(y)])
        return {
            "cross-entropy": self.cross_entropy(id_logits, y),
            "outliers": self.settings.lambda_oe * outlier_exposure(outlier_logits),
        }
