"""DREAM-ID (Du et al., NeurIPS 2023, Sec. 4.3): imagined inliers as further training images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from openood_dream.config import InputError
from openood_dream.trainers.base import OutlierTrainer, trainer


@trainer("dream_id")
class DreamIDTrainer(OutlierTrainer):
    """Cross-entropy on ID images and imagined inliers, each labelled with its class, averaged over both batches."""

    title = "DREAM-ID"
    inliers = True

    def loss(self, batch: dict[str, Any], inliers: dict[str, Any]) -> torch.Tensor:
        if inliers["label"].min() < 0:
            raise InputError(
                "dataset.oe.imglist_pth: label -1; the trainer dream_id needs inliers, labelled with their class"
            )
        y = torch.cat([self.labels(batch), self.labels(inliers)])
        return F.cross_entropy(self.logits(batch, inliers), y)
