"""OAL: what the student learns from the teacher and from outliers, and a bound that is one."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from toys import Batches, Net, options

from openood_dream import losses
from openood_dream.pipelines.train import train
from openood_dream.trainers.known import TRAINERS
from openood_dream.trainers.oal import Conditional, OALTrainer

TERMS = {"cross-entropy", "logits", "features", "knn", "latents"}


def trainer(loader: Batches, **settings) -> OALTrainer:
    inputs = {"teacher": Net(7), "embeddings": torch.randn(30, 6), "latents": torch.randn(20, 4, 8, 8)}
    return TRAINERS["oal"](Net(), loader, **options("oal", epochs=4, lr=0.05, settings=settings), **inputs)


def test_terms_by_hand():
    loader = Batches(1, size=8)
    one, batch = trainer(loader, logits=3.0, features=5.0, knn=0.5, latents=0.25), loader.batches[0]
    one.extra.eval()  # batch norm as in the second pass
    terms = one.terms(batch)
    logits, features = one.net(batch["data"], return_feature=True)
    teacher_logits, teacher_features = one.teacher(batch["data"], return_feature=True)
    p, q = teacher_logits.softmax(1), logits.softmax(1)
    assert terms["cross-entropy"].item() == pytest.approx(F.cross_entropy(logits, batch["label"]).item(), rel=1e-5)
    assert terms["logits"].item() == pytest.approx(3 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    p, q = one.translator(teacher_features).softmax(1), features.softmax(1)
    assert terms["features"].item() == pytest.approx(5 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert set(terms) == TERMS


def test_all_but_the_teacher_is_trained():
    one = trainer(Batches(4, size=8))
    teacher = [p.clone() for p in one.teacher.parameters()]
    trained = [*one.net.parameters(), *one.extra.parameters(), *one.fit_loss.parameters()]
    before = [p.detach().clone() for p in trained]
    one.train_epoch(1)
    assert all(torch.equal(old, new) for old, new in zip(teacher, one.teacher.parameters(), strict=True))
    assert all(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    assert not one.teacher.training


@pytest.mark.parametrize("name", ["knn", "latents"])
def test_bounds_move_the_backbone_and_not_q(name):
    loader = Batches(1, size=8)
    one = trainer(loader)
    features = one.net(loader.batches[0]["data"], return_feature=True)[1]
    one.bound(name, one.outliers[name][:8], features).backward()
    assert one.net.backbone.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in one.q[name].parameters())


def test_latents_become_means_over_a_grid():
    assert trainer(Batches(1)).outliers["latents"].shape == (20, 64)


def test_rate_of_the_translator():
    one = trainer(Batches(1), translator_lr=0.02)
    assert [group["initial_lr"] for group in one.optimizer.param_groups] == [0.05, 0.02]


def test_club_with_a_fitted_q_is_a_bound():
    """The public code never fits q, and its bound is none."""
    torch.manual_seed(0)
    rho, width = 0.5, 2
    true = -0.5 * math.log(1 - rho**2) * width
    best = rho**2 / (1 - rho**2) * width  # what CLUB gives where q is the true conditional

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, width)
        return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(count, width)

    q = Conditional(width, width)
    x, y = pairs(20_000)
    unfitted = losses.club(*q(x), y).item()
    optimizer = torch.optim.Adam(q.parameters(), 3e-3)
    for _ in range(300):
        loss = losses.gaussian_fit(*q(x[:2000]), y[:2000])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x[:2000], y[:2000] = pairs(2000)
    fitted = losses.club(*q(x), y).item()
    assert unfitted < true < fitted
    assert fitted == pytest.approx(best, rel=0.15)


def test_q_is_fitted_while_the_student_trains():
    torch.manual_seed(0)
    loader = Batches(40, size=8)
    one = trainer(loader, club_lr=1e-2)
    features = [one.net(batch["data"], return_feature=True)[1].detach() for batch in loader.batches]
    outliers = {name: rows[:8] for name, rows in one.outliers.items()}
    before = losses.gaussian_fit(*one.q["knn"](outliers["knn"]), features[0])
    for feature in features:
        one.fit(outliers, feature)
    assert losses.gaussian_fit(*one.q["knn"](outliers["knn"]), features[0]) < before


def test_teacher_is_trained_once(tiny, dream, tmp_path):
    layer = tmp_path / "oal.yml"
    teacher = {"network": "timm:resnet10t", "args": {"channels": [8, 8, 16, 16]}, "epochs": 2}
    layer.write_text(yaml.safe_dump({"trainer": {"name": "oal", "teacher": teacher}, "pipeline": {"name": "train"}}))
    keys = ["--method", "oal", "--root", str(tmp_path), "--dream.cache_dir", str(tiny.root / "dream")]
    before = set((tiny.root / "dream").glob("teacher-*"))
    folders = [train(tiny.config(*keys, "--seed", seed, layers=[str(layer)])) for seed in ("0", "1")]
    (made,) = set((tiny.root / "dream").glob("teacher-*")) - before
    assert len(json.loads((made / "train.json").read_text())["epochs"]) == 2
    assert set(json.loads((folders[1] / "train.json").read_text())["epochs"][0]["terms"]) == TERMS
    assert not list(tmp_path.rglob("training.ckpt"))
