"""DREAM-ID (Du et al., NeurIPS 2023, Sec. 4.3): imagined inliers as further training images."""

from __future__ import annotations

import torch

from openood_dream.errors import InputError
from openood_dream.trainers.base import Batch, OutlierTrainer, Terms, trainer
from openood_dream.trainers.settings import DreamID


@trainer("dream_id", DreamID)
class DreamIDTrainer(OutlierTrainer):
    """Cross-entropy on ID images and imagined inliers, each labelled with its class, averaged over all of them.

    A batch of inliers is added to each ID batch, or with `ratio` takes the place of that share of it.
    """

    inliers = True
    settings: DreamID

    def terms(self, *batches: Batch) -> Terms:
        batch, inliers = batches
        if inliers["label"].min() < 0:
            raise InputError(
                "dataset.oe.imglist_pth: label -1; the trainer dream_id needs inliers, labelled with their class"
            )
        if self.settings.ratio is not None:
            size = len(batch["label"])
            share = round(self.settings.ratio * size)
            batch, inliers = truncated(batch, size - share), truncated(inliers, share)
        y = torch.cat([self.labels(batch), self.labels(inliers)])
        return {"cross-entropy": self.cross_entropy(self.logits(batch, inliers), y)}


def truncated(batch: Batch, count: int) -> Batch:
    """The first `count` images of a batch, or all of a smaller one."""
    return {key: batch[key][:count] for key in ("data", "label")}
