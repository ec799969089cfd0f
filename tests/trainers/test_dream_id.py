"""DREAM-ID learns from imagined inliers as from any other image of their class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toys import make

from openood_dream.errors import InputError


def batch(*labels: int) -> dict[str, torch.Tensor]:
    return {"data": torch.randn(len(labels), 3, 4, 4), "label": torch.tensor(labels)}


@pytest.mark.parametrize("ratio, kept, added", [(None, 4, 3), (0.25, 3, 1)])
def test_mean_cross_entropy(ratio, kept, added):
    id_batch, inliers = batch(0, 1, 2, 0), batch(2, 0, 1)
    trainer = make("dream_id", [id_batch], [inliers], settings={"ratio": ratio})
    rows = [*zip(id_batch["data"], id_batch["label"])][:kept] + [*zip(inliers["data"], inliers["label"])][:added]
    by_hand = sum(F.cross_entropy(trainer.net(x[None]), y[None]) for x, y in rows) / (kept + added)
    torch.testing.assert_close(trainer.terms(id_batch, inliers)["cross-entropy"], by_hand)


def test_inlier_without_a_class():
    with pytest.raises(InputError, match=r"dataset\.oe\.imglist_pth: label -1; the trainer dream_id needs inliers"):
        make("dream_id", [batch(0, 1)], [batch(1, -1)]).train_epoch(1)
