"""Outlier Exposure (Hendrycks et al., ICLR 2019): auxiliary outliers are pushed to the uniform prediction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from openood_dream.losses import outlier_exposure
from openood_dream.trainers.base import OutlierTrainer, trainer


@trainer("oe")
class OETrainer(OutlierTrainer):
    """CE + lambda_oe * outlier_exposure."""

    title = "Outlier Exposure"

    def terms(self, batch: dict[str, Any], outliers: dict[str, Any]) -> dict[str, torch.Tensor]:
        y = self.labels(batch)
        inside, outside = self.logits(batch, outliers).tensor_split([len(y)])
        return {
            "cross-entropy": F.cross_entropy(inside, y),
            "outliers": self.settings.lambda_oe * outlier_exposure(outside),
        }
