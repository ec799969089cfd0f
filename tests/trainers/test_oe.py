"""Outlier Exposure."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from toys import Batches, make, total


def test_loss_by_hand():
    id_loader, outlier_loader = Batches(1, size=5), Batches(1, size=3, label=-1)
    trainer = make("oe", id_loader, outlier_loader)
    (batch,), (outliers,) = id_loader.batches, outlier_loader.batches
    others = trainer.net(outliers["data"])
    expected = F.cross_entropy(trainer.net(batch["data"]), batch["label"])
    expected = expected + 0.5 * (others.logsumexp(1) - others.mean(1)).mean()
    assert total(trainer, batch, outliers).item() == pytest.approx(expected.item(), rel=1e-5)
