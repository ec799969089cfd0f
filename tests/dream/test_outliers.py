"""The outliers stage: what its table and manifest say, resuming, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import Tiny
from slow_knn import slow_distance, slow_round

from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.chain import Dream
from openood_dream.dream.outliers import load_outliers, make_outliers
from openood_dream.dream.samplers import SAMPLERS, OutlierSettings, knn
from openood_dream.dream.samplers.boundary import Boundary, BoundarySettings
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.sampling import ncis
from openood_dream.sampling.knn import knn_distance
from openood_dream.store.artifacts import MANIFEST, Artifact, build
from openood_dream.store.tensors import write_tensors

NAMES = ["cat", "dog", "emu"]
SMALL = {"k": 5, "sigma": 0.15, "select": 10, "n_boundary": 6, "n_draws": 20, "keep": 2, "rounds": 3}


class World:
    """A space of three classes on disk, as the stages before this one leave it, and configs that sample in it."""

    def __init__(self, folder: Path) -> None:
        width, generator = 12, torch.Generator().manual_seed(5)
        self.folder = folder
        lengths = torch.tensor([[0.3], [0.4], [0.5]])
        self.anchors = F.normalize(torch.randn(3, width, generator=generator), dim=1) * lengths
        self.labels = torch.tensor([0] * 30 + [1] * 25 + [2] * 40)
        self.labels = self.labels[torch.randperm(len(self.labels), generator=generator)]
        noise = 0.8 * torch.randn(len(self.labels), width, generator=generator) / width**0.5
        self.z = F.normalize(F.normalize(self.anchors, dim=1)[self.labels] + noise, dim=1)

    def artifact(self, stage: str, **tensors: torch.Tensor) -> Artifact:
        inputs = {name: tensor.tolist() for name, tensor in tensors.items() if tensor.isfinite().all()}
        return build(
            self.folder / "upstream",
            stage,
            inputs,
            lambda folder: write_tensors(folder / f"{stage}.safetensors", **tensors),
        )

    def settings(self, outliers: dict) -> OutlierSettings:
        path = self.folder / "world.yml"
        dream = {"class_names": NAMES, "generator": "some/model", "outliers": outliers}
        path.write_text(yaml.safe_dump({"dream": dream}))
        return load_config([path]).dream.outliers

    def run(self, cache: str = "cache", **changes) -> Artifact:
        settings = self.settings(changes if changes.get("method") == "boundary" else SMALL | changes)
        anchors = self.artifact("anchors", anchors=self.anchors)
        space = self.artifact("embeddings", embeddings=self.z, labels=self.labels)
        return make_outliers(anchors, space, NAMES, settings, 0.1, self.folder / cache, device="cpu")


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


BOUNDARY = {"method": "boundary", "k": 5, "fraction": 0.4, "step_size": 0.2}
NCIS = {"method": "ncis", "epochs": 4, "repetitions": 2, "least_likely": 4}
METHODS = [
    {},
    {"method": "inlier", "sigma": 0.02},
    {"selection": "random"},
    {"neighbours": "all"},
    {"sigma": "auto", "multiple": 1.2},
    BOUNDARY,
    NCIS,
]


def read(artifact: Artifact) -> tuple[pd.DataFrame, torch.Tensor]:
    table, embeddings = load_outliers(artifact)
    return table, embeddings.all()


def content(artifact: Artifact) -> dict[str, bytes]:
    return {
        file.relative_to(artifact.path).as_posix(): file.read_bytes()
        for file in sorted(artifact.path.rglob("*"))
        if file.is_file() and file.name not in (".lock", MANIFEST)
    }


@pytest.mark.parametrize("changes", METHODS, ids=str)
def test_table(world, changes):
    artifact = world.run(**changes)
    table, embeddings = read(artifact)
    assert list(table) == ["class", "boundary", "distance", "steps", "target", "seed", "draw"]
    assert len(table) == len(embeddings) == sum(about["embeddings"] for about in artifact.manifest["classes"])
    assert table["class"].is_monotonic_increasing and set(table["class"]) == {0, 1, 2}
    assert (world.labels[torch.tensor(table["boundary"])].numpy() == table["class"]).all()
    norms = world.anchors.norm(dim=1)[torch.tensor(table["class"])]
    assert torch.allclose(embeddings.norm(dim=1), norms, atol=1e-6)
    for i in range(0, len(table), 7):
        label = int(table["class"][i])
        bank = world.z if changes.get("neighbours") == "all" else world.z[world.labels == label]
        v = F.normalize(embeddings[i].double(), dim=0).numpy()
        assert table["distance"][i] == pytest.approx(slow_distance(v, bank.double().numpy(), 5), abs=1e-5)


@pytest.mark.parametrize("changes", [m for m in METHODS if m not in (BOUNDARY, NCIS)], ids=str)
def test_embedding_from_its_row(world, changes):
    artifact = world.run(**changes)
    table, embeddings = read(artifact)
    assert len(table) == 3 * 3 * 6 * 2 and table[["steps", "target"]].isna().all(axis=None)
    for i in range(0, len(table), 5):
        label = int(table["class"][i])
        draws = torch.randn(20, 12, generator=torch.Generator().manual_seed(int(table["seed"][i])))
        sigma = artifact.manifest["classes"][label]["sigma"]
        v = world.z[table["boundary"][i]] + sigma * draws[table["draw"][i]]
        assert torch.allclose(embeddings[i], world.anchors[label].norm() * F.normalize(v, dim=0), atol=1e-6)


def test_best_candidates_around_the_farthest(world):
    table, _ = read(world.run(n_boundary=10))
    for label in range(3):
        rows = (world.labels == label).nonzero()[:, 0]
        z, mine = world.z[rows], table[table["class"] == label]
        d = np.array([slow_distance(v, z.double().numpy(), 5) for v in z.double().numpy()])
        assert set(mine["boundary"]) == set(rows[np.argsort(-d)[:10].copy()].tolist())
        for seed, part in mine.groupby("seed"):
            draws = torch.randn(20, 12, generator=torch.Generator().manual_seed(int(seed)))
            points = torch.from_numpy(part["boundary"].unique())
            local = torch.searchsorted(rows, points)
            expected, _ = slow_round(z, local, 5, 0.15, draws, 2, True, z)
            assert part["draw"].to_numpy(np.int64).reshape(10, 2).tolist() == expected.tolist()


def test_rounds(world):
    table, _ = read(world.run(n_boundary=3, rounds=20))
    used = table.groupby(["class", "seed"])["boundary"]
    assert len(used) == 3 * 20 and (used.nunique() == 3).all()
    assert table["seed"].nunique() == 3 * 20
    assert (table.groupby("class")["boundary"].nunique() == 10).all()


def test_crossings(world):
    artifact = world.run(**BOUNDARY, extra_steps=0)
    table, embeddings = read(artifact)
    assert table[["seed", "draw"]].isna().all(axis=None)
    nearest = (F.normalize(embeddings, dim=1) @ F.normalize(world.anchors, dim=1).T).argmax(1)
    assert (nearest.numpy() == table["target"].to_numpy(np.int64)).all()
    assert (table["target"] != table["class"]).all() and (table["steps"] > 0).all()
    walks = pd.read_parquet(artifact.path / "crossings.parquet")
    assert sorted(walks["boundary"]) == list(range(len(world.z)))
    for label, walk in walks.groupby("class"):
        mine = table[table["class"] == label]
        assert len(mine) == math.ceil(0.4 * len(walk))
        left = walk[(walk["steps"] > 0) & ~walk["boundary"].isin(mine["boundary"])]
        assert mine["steps"].max() <= left["steps"].min()
        assert artifact.manifest["classes"][label]["crossed"] == pytest.approx((walk["steps"] > 0).mean())


def test_invariants(world):
    world.z[:, 9:] = 0.01  # what all embeddings have in common
    world.z = F.normalize(world.z, dim=1)
    artifact = world.run(**NCIS | {"epochs": 100, "lr": 3e-3})
    table, _ = read(artifact)
    assert len(table) == 3 * 2 * 4 and table[["seed", "draw", "steps", "target"]].isna().all(axis=None)
    for about in artifact.manifest["classes"]:
        assert about["invariants"] >= 3 and about["violation"] > 1.5 * about["id_violation"]


def test_network_is_trained_once(world, monkeypatch):
    whole = world.run("whole", **NCIS)
    monkeypatch.setattr(SAMPLERS["ncis"], "sample", None)
    with pytest.raises(TypeError):
        world.run("parts", **NCIS)
    monkeypatch.undo()
    monkeypatch.setattr(ncis, "train", None)
    assert content(world.run("parts", **NCIS)) == content(whole)


def test_manifest_quantiles(world):
    artifact = world.run()
    table, _ = read(artifact)
    for label, about in enumerate(artifact.manifest["classes"]):
        z = world.z[world.labels == label]
        assert (about["name"], about["sigma"]) == (NAMES[label], 0.15)
        for key, values in (
            ("id_distance", knn_distance(z, z, 5)),
            ("distance", table["distance"][table["class"] == label]),
        ):
            assert about[key]["p50"] == pytest.approx(np.quantile(values, 0.5), rel=1e-6)
            assert about[key]["p99"] == pytest.approx(np.quantile(values, 0.99), rel=1e-6)


def test_second_run_samples_nothing(world, monkeypatch):
    first = world.run()
    monkeypatch.setattr(knn, "sample_outliers", None)
    again = world.run()
    assert again.reused and not first.reused and content(again) == content(first)


def test_identity(world):
    first = world.run()
    assert world.run(max_steps=7, multiple=3.0).reused
    assert world.run(seed=1).hash != first.hash
    assert world.run(**BOUNDARY).hash == world.run(**BOUNDARY, sigma=0.3, seed=4).hash
    assert world.run(sigma="auto").hash != world.run(sigma="auto", multiple=1.2).hash


@pytest.mark.parametrize("changes", METHODS, ids=str)
def test_interrupted_run_goes_on(world, monkeypatch, changes):
    whole = world.run("whole", **changes)
    cls = SAMPLERS[changes.get("method", "knn")]
    sample, sampled = cls.sample, []

    def interrupted(self, z, label, *args):
        sampled.append(label)
        if sampled == [0, 1]:
            raise KeyboardInterrupt
        return sample(self, z, label, *args)

    monkeypatch.setattr(cls, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.run("parts", **changes)
    parts = world.run("parts", **changes)
    assert sampled == [0, 1, 1, 2]
    assert content(parts) == content(whole)
    assert parts.manifest["classes"] == whole.manifest["classes"]


def test_class_is_independent(world):
    before, embeddings = read(world.run())
    world.z[world.labels == 0] = F.normalize(torch.randn(30, 12), dim=1)
    after, changed = read(world.run())
    kept = (before["class"] > 0).tolist()
    assert torch.equal(embeddings[kept], changed[kept]) and before[kept].equals(after[kept])
    assert not torch.equal(embeddings[:36], changed[:36])


def test_seed(world):
    one, other = (read(world.run(seed=seed))[1] for seed in (0, 1))
    assert not torch.allclose(one, other)


def spoil_nan(world):
    world.z[17, 3] = math.nan


def spoil_zero(world):
    world.z[18] = 0


def spoil_length(world):
    world.z[19] *= 2


def spoil_width(world):
    world.anchors = torch.randn(3, 8)


def spoil_class(world):
    keep = world.labels != 1
    world.z, world.labels = world.z[keep], world.labels[keep]


@pytest.mark.parametrize(
    ("changes", "spoil", "says"),
    [
        ({"k": 25, "select": 9}, None, "world.yml: dream.outliers.k: 25 .*'dog'"),
        ({"k": 95, "neighbours": "all"}, None, "world.yml: dream.outliers.k: 95 "),
        ({**BOUNDARY, "k": 40}, None, "world.yml: dream.outliers.k: 40 "),
        ({"select": 26}, None, "world.yml: dream.outliers.select: 26 .*'dog'"),
        ({}, spoil_nan, "embeddings.safetensors: embeddings: row 17 is not finite"),
        ({}, spoil_zero, "embeddings.safetensors: embeddings: row 18 is zero"),
        ({}, spoil_length, "embeddings.safetensors: embeddings: row 19 .* 2, expected 1"),
        ({}, spoil_width, "embeddings.safetensors: embeddings of 12 .* 8"),
        ({}, spoil_class, "no embedding of class 'dog': 3 anchors, and embeddings of 2 classes"),
    ],
)
def test_bad_input(world, changes, spoil, says):
    if spoil:
        spoil(world)
    with pytest.raises(InputError, match=says) as caught:
        world.run(**changes)
    assert "\n" not in str(caught.value)
    assert not (world.folder / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sigma": "auto", "multiple": 9.0}, "world.yml: dream.outliers: class 'cat': .*multiple 9"),
        ({**BOUNDARY, "max_steps": 1, "step_size": 0.001}, "world.yml: dream.outliers: class 'cat': none of 30 "),
    ],
)
def test_nothing_found(world, changes, says):
    with pytest.raises(InputError, match=says):
        world.run(**changes)


def test_tiny_chain(dream: Dream):
    table, embeddings = read(dream.outliers)
    assert embeddings.shape == (6 * 5 * 2, 16) and len(table) == 60
    labels = load_space(dream.space)["labels"]
    assert (labels[torch.tensor(table["boundary"])].numpy() == table["class"]).all()


def test_plain_takes_the_anchors(tiny: Tiny, dream: Dream):
    plain = tiny.config("--dream.outliers.method", "plain").imagination
    table, embeddings = read(plain.outliers)
    anchors_of = load_anchors(dream.anchors)
    assert table["class"].tolist() == list(range(6)) and torch.allclose(embeddings, anchors_of, atol=1e-6)
    z = load_space(dream.space)
    for row in table.itertuples():
        own = z["embeddings"][z["labels"] == row[1]]
        nearest = torch.cdist(F.normalize(anchors_of[row[1]][None], dim=1), own).sort().values[0, 4]
        assert row.distance == pytest.approx(nearest.item(), abs=1e-5)


def test_boundary_needs_embeddings_in_their_class():
    sampler = Boundary(BoundarySettings(method="boundary", k=1))
    with pytest.raises(ValueError, match=r"none of 2 embeddings .*dream\.space\.epochs"):
        sampler.sample(torch.eye(3)[1:], 0, torch.eye(3), 0.1)


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("outliers", "cls", "used"),
    [
        ({}, "KNNSettings", {"method": "knn", "sigma": "auto"}),
        ({"method": "boundary", "sigma": 0.1, "k": 7}, "BoundarySettings", {"k": 7, "step_size": 0.03}),
        ({"method": "plain", "rounds": 3}, "PlainSettings", {"method": "plain"}),
    ],
)
def test_keys_of_other_samplers_are_dropped(world, outliers, cls, used):
    settings = world.settings(outliers)
    assert type(settings).__name__ == cls and used.items() <= settings.model_dump().items()


@pytest.mark.parametrize(
    ("outliers", "says"),
    [
        ({"method": "knm"}, r"dream\.outliers\.method: .*'knn'"),
        ({"method": "boundary", "step_sise": 1.0}, r"dream\.outliers\.step_sise: .*'step_size'"),
        ({"keep": 3, "n_draws": 2}, r"dream\.outliers\.keep: .*n_draws"),
        ({"sigma": 0.0}, r"dream\.outliers\.sigma: "),
        ({"n_boundary": 60}, r"dream\.outliers\.n_boundary: .*select"),
    ],
)
def test_bad_settings(world, outliers, says):
    with pytest.raises(InputError, match=r"world\.yml: " + says):
        world.settings(outliers)
