"""NPOS's outliers; what it shares with VOS is in test_vos.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from toys import filled


def test_far_candidates_are_kept(monkeypatch):
    """Two public implementations mix up the axes and in effect keep random ones."""
    trainer, _ = filled("npos")
    a, z = trainer.settings.trainer_args, trainer.queue.rows[0].clone()
    given = {}
    monkeypatch.setattr(torch, "randn", lambda *shape, draw=torch.randn: given.setdefault("draws", draw(*shape)))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    found = trainer.outliers()
    gaps = torch.cdist(z, z).sort(1).values
    edge = gaps[:, a.K - 1].sort(descending=True, stable=True).indices[: a.pick_nums]
    expected = []
    for point in edge:
        candidates = F.normalize(z[point] + a.cov_mat * given["draws"], dim=1)
        far = torch.cdist(candidates, z).sort(1).values[:, a.K - 1].topk(a.ID_points_num).indices
        expected.append(candidates[far])
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_one_class_anew_in_each_step():
    trainer, _ = filled("npos")
    for step in range(1, 5):
        before = trainer.found.rows.clone()
        count = len(trainer.outliers())
        changed = (trainer.found.rows != before).any(2).any(1)
        assert count == min(step, 3) * 10 and changed.tolist() == [(step - 1) % 3 == c for c in range(3)]
