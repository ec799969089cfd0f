"""NPOS's outliers; what it shares with VOS is in test_vos.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from toys import filled, total


def test_far_candidates_are_kept(monkeypatch):
    """Two public implementations mix up the axes and in effect keep random ones."""
    trainer, _ = filled("npos")
    a, z = trainer.settings.trainer_args, trainer.queue.rows[0].clone()
    given = {}
    monkeypatch.setattr(torch, "randn", lambda *shape, draw=torch.randn: given.setdefault("draws", draw(*shape)))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    found = trainer.outliers()
    unit = F.normalize(z, dim=1)
    gaps = torch.cdist(unit, unit).sort(1).values
    edge = gaps[:, a.K - 1].sort(descending=True, stable=True).indices[: a.pick_nums]
    expected = []
    for point in edge:
        candidates = z[point] + a.cov_mat * given["draws"]
        far = torch.cdist(F.normalize(candidates, dim=1), unit).sort(1).values[:, a.K - 1].topk(a.ID_points_num).indices
        expected.append(candidates[far])
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_one_class_anew_in_each_step():
    trainer, _ = filled("npos")
    for step in range(1, 5):
        before = trainer.found.rows.clone()
        count = len(trainer.outliers())
        changed = (trainer.found.rows != before).any(2).any(1)
        assert count == min(step, 3) * 10 and changed.tolist() == [(step - 1) % 3 == c for c in range(3)]


def test_prototypes_begin_as_the_means_of_their_classes():
    trainer, batches = filled("npos")
    trainer.prototypes.rows.zero_()
    trainer.start_prototypes()
    trainer.model.eval()
    sums = torch.zeros_like(trainer.prototypes.rows)
    with torch.no_grad():
        for batch in batches:
            for image, label in zip(batch["data"], batch["label"]):
                feature = trainer.net(image[None], return_feature=True)[1]
                sums[label] += F.normalize(trainer.head(feature), dim=1)[0]
    assert torch.allclose(trainer.prototypes.rows, F.normalize(sums, dim=1), atol=1e-5)


def test_detector_sees_features_as_they_are(monkeypatch):
    trainer, batches = filled("npos")
    seen = []
    trainer.detector.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].detach()))
    batch = next(iter(batches))
    trainer.epoch = 9
    trainer.terms(batch)
    features = trainer.net(batch["data"], return_feature=True)[1]
    assert torch.allclose(seen[0][: len(features)], features, atol=1e-5)
    assert (seen[0][len(features) :].norm(dim=1) - 1).abs().max() > 0.05


def test_two_views_are_images_of_the_same_labels():
    trainer, batches = filled("npos")
    one = next(iter(batches))
    two = one | {"data": [one["data"], one["data"]]}
    assert (
        torch.equal(trainer.images(two), torch.cat(two["data"]))
        and trainer.labels(two).tolist() == one["label"].tolist() * 2
    )
    taken = int(trainer.queue.taken.sum())
    assert total(trainer, two).isfinite()
    assert int(trainer.queue.taken.sum()) == taken + 8


def test_feature_of_zeros_stops_nothing():
    trainer, _ = filled("npos")
    trainer.queue.rows[0, 3] = 0
    assert trainer.outliers().isfinite().all()
