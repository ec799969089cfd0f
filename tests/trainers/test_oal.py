"""OAL: what the student learns from the teacher and from outliers, and a bound that is one."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from toys import Batches, Net, oal_inputs, options

from openood_dream import losses
from openood_dream.dream.chain import Dream
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.space import load_space
from openood_dream.pipelines.train import train
from openood_dream.store.artifacts import Artifact
from openood_dream.trainers.known import TRAINERS
from openood_dream.trainers.oal import Conditional, Draws, OALTrainer

TERMS = {"cross-entropy", "logits", "features", "knn", "latents"}


def trainer(loader: Batches, **settings) -> OALTrainer:
    return TRAINERS["oal"](Net(), loader, **options("oal", epochs=4, lr=0.05, settings=settings), **oal_inputs())


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


def test_outliers_of_the_images_class_as_often_as_each_other():
    torch.manual_seed(0)
    classes, labels = torch.tensor([2, 0, 1, 2, 0, 2]), torch.randint(3, (60_000,))
    rows = Draws(classes, "class")(labels)
    assert torch.equal(classes[rows], labels)
    for label in range(3):
        of_class = (classes == label).nonzero()[:, 0]
        counts = rows[labels == label].bincount(minlength=len(classes))[of_class]
        expected = (labels == label).sum() / len(of_class)
        assert (counts - expected).abs().max() < 5 * expected.sqrt()


def test_outliers_at_random_are_of_every_class_for_every_image():
    torch.manual_seed(0)
    classes, labels = torch.arange(6) % 3, torch.zeros(60_000, dtype=torch.long)
    counts = Draws(classes, "random")(labels).bincount()
    assert (counts - 10_000).abs().max() < 500


def test_a_class_without_outliers_is_named():
    with pytest.raises(ValueError, match="class 1 has no outlier"):
        Draws(torch.tensor([0, 2]), "class")
    Draws(torch.tensor([0, 2]), "random")


@pytest.mark.parametrize("pairing", ["random", "class"])
def test_random_pairing_leaves_nothing_to_bound(pairing):
    """Features that say their class alone: over all pairings CLUB is 0 as published, and a bound above 0 by class."""
    torch.manual_seed(0)
    centres = torch.tensor([[3.0, 0], [0, 3], [-3, -3]])
    classes = torch.arange(300) % 3
    outliers, q, draw = centres[classes] + torch.randn(300, 2), Conditional(2, 2), Draws(classes, pairing)
    optimizer = torch.optim.Adam(q.parameters(), 1e-2)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(3, (size,))
        return outliers[draw(labels)], centres[labels] + torch.randn(size, 2)

    for _ in range(300):
        rows, features = batch(256)
        loss = losses.gaussian_fit(*q(rows), features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = torch.stack([losses.club(*q(rows), features) for rows, features in (batch(256) for _ in range(50))])
    if pairing == "random":
        assert found.mean().abs() < 4 * found.std() / 50**0.5 and found.mean().abs() < 0.1
    else:
        assert found.mean() > math.log(3)  # what there is to know


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


def test_teacher_is_fine_tuned_with_two_rates_and_outliers_lie_around_its_features(tiny, dream, tmp_path, monkeypatch):
    made = {}

    def around(self, net, weights):
        made.update(net=net, artifact=kept(self, net, weights))
        return made["artifact"]

    kept = Dream.outliers_around
    monkeypatch.setattr(Dream, "outliers_around", around)
    layer = tmp_path / "oal.yml"
    teacher = {"network": "timm:resnet10t", "args": {"channels": [8, 8, 8, 12]}, "epochs": 1, "trunk_lr": 1e-6}
    layer.write_text(yaml.safe_dump({"trainer": {"name": "oal", "pairing": "class", "teacher": teacher}}))
    keys = [
        "--root",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "run"),
        "--dream.cache_dir",
        str(tiny.root / "dream"),
    ]
    experiment = tiny.config(*keys, layers=[str(layer)])
    folder = train(experiment)
    record = json.loads((folder / "train.json").read_text())
    assert record["outlier_data"] == "teacher, latents by class"
    (config,) = (
        yaml.safe_load(path.read_text())
        for path in (tiny.root / "dream").glob("teacher-*/config.yml")
        if "trunk_lr: 1.0e-06" in path.read_text()
    )
    assert config["optimizer"]["name"] == "adam" and config["optimizer"]["lr"] == 1e-4
    # by hand: unit features of the training images in the order of their list
    features = load_space(
        Artifact(tiny.root / "dream" / f"features-{made['artifact'].manifest['inputs']['space'][:8]}", {}, reused=True)
    )
    images = experiment.data.images("dataset", "train")
    for row in (0, 7):
        number = int(features["rows"][row])
        with torch.inference_mode():
            expected = made["net"].eval()(images[number]["data"][None], return_feature=True)[1]
        assert torch.allclose(features["embeddings"][row], F.normalize(expected, dim=1)[0], atol=1e-5)
        assert features["labels"][row] == images[number]["label"]
    table, rows = load_outliers(made["artifact"])
    assert rows.all().shape[1] == 12 and set(table["class"]) == set(range(6))
