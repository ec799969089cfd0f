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

    def loss(self, batch: dict[str, Any], outliers: dict[str, Any]) -> torch.Tensor:
        logits, y = self.logits(batch, outliers), self.labels(batch)
        return F.cross_entropy(logits[: len(y)], y) + self.settings.lambda_oe * outlier_exposure(logits[len(y) :])
