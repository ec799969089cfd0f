"""OAL: what the student learns from the teacher and from outliers, and a bound that is one."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from openood_dream import losses, pipelines
from openood_dream.config import Config
from openood_dream.trainers import TRAINERS
from openood_dream.trainers.oal import Conditional


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone, self.fc = nn.Linear(12, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, return_feature: bool = False):
        feature = self.backbone(x.flatten(1))
        return (self.fc(feature), feature) if return_feature else self.fc(feature)

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"data": torch.randn(8, 3, 2, 2), "label": torch.randint(3, (8,))} for _ in range(count)]


def trainer(loader: list, net: nn.Module | None = None, **weights):
    options = {"num_epochs": 4, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    config = Config(trainer={"name": "oal", **weights}, optimizer=options, precision="float32")
    return TRAINERS["oal"](
        net or Net(5), loader, config, teacher=Net(7), embeddings=torch.randn(30, 6), latents=torch.randn(20, 4, 8, 8)
    )


def test_the_terms_are_the_papers():
    loader = batches(1)
    one, batch = trainer(loader, logits=3.0, features=5.0, knn=0.5, latents=0.25), loader[0]
    one.extra.eval()  # batch norm as in the second pass
    terms = one.terms(batch)
    logits, features = one.net(batch["data"], return_feature=True)
    theirs, taught = one.teacher(batch["data"], return_feature=True)
    p, q = theirs.softmax(1), logits.softmax(1)
    assert terms["cross-entropy"].item() == pytest.approx(F.cross_entropy(logits, batch["label"]).item(), rel=1e-5)
    assert terms["logits"].item() == pytest.approx(3 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    p, q = one.extra["translator"](taught).softmax(1), features.softmax(1)
    assert terms["features"].item() == pytest.approx(5 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert set(terms) == {"cross-entropy", "logits", "features", "knn", "latents"}


def test_the_teacher_stays_as_it_is_and_all_else_is_trained():
    one = trainer(batches(4))
    teacher = [p.clone() for p in one.teacher.parameters()]
    before = [p.detach().clone() for p in (*one.net.parameters(), *one.extra.parameters())]
    one.train_epoch(1)
    assert all(torch.equal(old, new) for old, new in zip(teacher, one.teacher.parameters(), strict=True))
    after = [*one.net.parameters(), *one.extra.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not one.teacher.training


def test_the_information_terms_move_the_backbone_and_not_q():
    loader = batches(1)
    one = trainer(loader)
    for name in ("knn", "latents"):
        one.optimizer.zero_grad()
        one.fitting.zero_grad()
        features = one.net(loader[0]["data"], return_feature=True)[1]
        one.bound(name, one.outliers[name][:8], features).backward()
        assert one.net.backbone.weight.grad.abs().sum() > 0
        assert all(p.grad is None or not p.grad.any() for p in one.extra[name].parameters())


def test_latents_become_means_over_a_grid():
    one = trainer(batches(1))
    assert one.outliers["latents"].shape == (20, 64)


def test_the_translator_has_a_rate_of_its_own():
    one = trainer(batches(1), translator_lr=0.02)
    rates = [group["initial_lr"] for group in one.optimizer.param_groups]
    assert rates == [0.05, 0.02]


def test_club_with_a_fitted_q_bounds_the_mutual_information_and_comes_near_it():
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
    loader = batches(40)
    one = trainer(loader, club_lr=1e-2)
    features = [one.net(b["data"], return_feature=True)[1].detach() for b in loader]
    before = losses.gaussian_fit(*one.extra["knn"](one.outliers["knn"][:8]), features[0])
    for feature in features:
        one.fit({name: rows[:8] for name, rows in one.outliers.items()}, feature)
    after = losses.gaussian_fit(*one.extra["knn"](one.outliers["knn"][:8]), features[0])
    assert after < before


def test_the_pipeline_trains_the_teacher_once_and_then_the_student(tiny, chain, tmp_path):
    small = tmp_path / "oal.yml"
    teacher = {"network": "timm:resnet10t", "args": {"channels": [8, 8, 16, 16]}, "epochs": 2}
    small.write_text(yaml.safe_dump({"trainer": {"name": "oal", "teacher": teacher}, "pipeline": {"name": "train"}}))
    keys = ["--method", "oal", "--root", str(tmp_path), "--dream.cache_dir", str(tiny.root / "dream")]
    before = set((tiny.root / "dream").glob("teacher-*"))
    folders = [pipelines.train(tiny.config(*keys, "--seed", seed, layers=[str(small)])) for seed in ("0", "1")]
    (made,) = set((tiny.root / "dream").glob("teacher-*")) - before
    assert len(json.loads((made / "train.json").read_text())["epochs"]) == 2
    terms = json.loads((folders[1] / "train.json").read_text())["epochs"][0]["terms"]
    assert set(terms) == {"cross-entropy", "logits", "features", "knn", "latents"}
    assert not list(tmp_path.rglob("training.ckpt"))
