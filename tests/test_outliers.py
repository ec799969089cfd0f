"""Phase 2a: every sampler against a slow, obvious version of its equations, and the stage that runs them."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from openood_dream import anchors as anchors_stage
from openood_dream import outliers, store
from openood_dream import space as space_stage
from openood_dream.config import InputError, OutlierSettings, load_config
from openood_dream.outliers import (
    Index,
    boundary_points,
    cross_boundary,
    cross_class,
    knn_distance,
    sample_round,
    soonest,
)

many = hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ------------------------------------------------------------------------------------------------- slow and obvious


def slow_distance(v: np.ndarray, bank: np.ndarray, k: int) -> float:
    """d_k of one vector: all distances, sorted, the k-th."""
    return sorted(math.sqrt(sum((v - row) ** 2)) for row in bank)[k - 1]


def slow_round(z, boundary, k, sigma, draws, keep, farthest, bank):
    """Steps 2 and 3 of DREAM-OOD with every candidate formed and measured: indices and distances (B, keep)."""
    z, draws, bank = (t.double().numpy() for t in (z, draws, bank))
    indices, distances = [], []
    for b in boundary.tolist():
        candidates = z[b] + sigma * draws
        candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
        between = np.linalg.norm(candidates[:, None] - bank, axis=2)
        # rounded, so that candidates that differ by less than a float32 can tell are ties
        d = np.sort(between, axis=1)[:, k - 1].astype(np.float32)
        order = sorted(range(len(draws)), key=lambda i: (-d[i] if farthest else d[i], i))[:keep]
        indices.append(order)
        distances.append(d[order])
    return torch.tensor(indices), torch.tensor(np.array(distances))


def unit(rows: int, width: int, generator: torch.Generator, distinct: int | None = None) -> torch.Tensor:
    """Random unit rows around a common direction, some of them duplicates where fewer are to be `distinct`."""
    z = F.normalize(torch.randn(width, generator=generator) + torch.randn(rows, width, generator=generator), dim=1)
    return z if distinct is None else z[torch.randint(distinct, (rows,), generator=generator)]


@st.composite
def rounds(draw):
    """The arguments of a round, of any size, with duplicates among embeddings, boundary points and draws."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, width = draw(st.integers(1, 40)), draw(st.integers(1, 24))
    z = unit(rows, width, generator, draw(st.integers(1, rows)))
    count = draw(st.integers(1, 50))
    draws = torch.randn(count, width, generator=generator)
    draws = draws[torch.randint(draw(st.integers(1, count)), (count,), generator=generator)]
    boundary = torch.randint(rows, (draw(st.integers(1, 6)),), generator=generator)
    sigma = 10 ** draw(st.floats(-3, 1))
    return z, boundary, draw(st.integers(1, rows)), sigma, draws, draw(st.integers(1, count))


def check_round(found, expected, z, boundary, sigma, draws):
    (rows, vectors, distance), (slow_rows, slow_distances) = found, expected
    assert torch.equal(rows, slow_rows)
    assert torch.allclose(distance, slow_distances, atol=1e-6)
    assert torch.allclose(vectors, F.normalize(z[boundary][:, None] + sigma * draws[rows], dim=2), atol=1e-6)


# --------------------------------------------------------------------------------------------------- k-NN distance


@many
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.data())
def test_knn_distance_is_the_kth_smallest_of_all_distances(seed, n, rows, width, data):
    generator = torch.Generator().manual_seed(seed)
    bank = unit(rows, width, generator, data.draw(st.integers(1, rows))) * 3
    x = torch.cat([torch.randn(n, width, generator=generator), bank[:1]])
    k = data.draw(st.integers(1, rows))
    found = knn_distance(x, bank, k)
    expected = [slow_distance(v, bank.double().numpy(), k) for v in x.double().numpy()]
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_an_embedding_is_its_own_first_neighbour_and_duplicates_are_0_apart():
    z = F.normalize(torch.randn(20, 768), dim=1)
    z[7] = z[3]
    assert (knn_distance(z, z, 1) == 0).all()
    assert (knn_distance(z, z, 2) == 0).nonzero()[:, 0].tolist() == [3, 7]


def test_distances_do_not_depend_on_how_the_work_is_cut_into_blocks(monkeypatch):
    z, draws = unit(60, 16, torch.Generator().manual_seed(0)), torch.randn(90, 16)
    boundary, whole = torch.arange(10), knn_distance(z, z, 5)
    expected = sample_round(z, boundary, 5, 0.2, draws, 3)
    monkeypatch.setattr(outliers, "BLOCK", 200)
    assert torch.equal(knn_distance(z, z, 5), whole)
    for one, other in zip(sample_round(z, boundary, 5, 0.2, draws, 3), expected, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize(
    ("x", "bank", "k", "says"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), 5, "k=5 is not in 1..4"),
        (torch.ones(2, 3), torch.ones(4, 3), 0, "k=0 is not in 1..4"),
        (torch.ones(2, 3), torch.ones(4, 5), 1, "x has 3 dimensions and the bank 5"),
        (torch.tensor([[1.0], [0.0]]), torch.ones(4, 1), 1, "x: row 1 is zero"),
        (torch.ones(2, 1), torch.tensor([[1.0], [2.0], [math.nan]]), 1, "bank: row 2 is not finite"),
        (torch.ones(0, 3), torch.ones(4, 3), 1, "expected one embedding per row"),
    ],
)
def test_what_cannot_be_measured_is_named(x, bank, k, says):
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        knn_distance(x, bank, k)


# ------------------------------------------------------------------------------------------------- boundary points


@many
@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans(), st.data())
def test_boundary_points_have_the_extreme_distances_and_ties_go_to_the_lower_row(seed, rows, largest, data):
    z = unit(rows, 5, torch.Generator().manual_seed(seed), data.draw(st.integers(1, rows)))
    k, select = data.draw(st.integers(1, rows)), data.draw(st.integers(1, rows))
    index, distance = boundary_points(z, k, select, largest)
    d = np.array([slow_distance(v, z.double().numpy(), k) for v in z.double().numpy()], np.float32)
    expected = sorted(range(rows), key=lambda i: (-d[i] if largest else d[i], i))[:select]
    assert index.tolist() == expected
    assert np.allclose(distance, d[expected], atol=1e-6)


@pytest.mark.parametrize("select", [0, 5])
def test_no_more_boundary_points_than_embeddings(select):
    with pytest.raises(InputError, match=rf"select={select} is not in 1\.\.4"):
        boundary_points(torch.eye(4), 1, select)


# ------------------------------------------------------------------------------------------------------- one round


@many
@given(rounds(), st.booleans())
def test_a_round_keeps_what_a_search_of_every_candidate_keeps(args, farthest):
    z, boundary, k, sigma, draws, keep = args
    found = sample_round(*args, "far" if farthest else "near")
    check_round(found, slow_round(*args, farthest, z), z, boundary, sigma, draws)


@pytest.mark.parametrize("selection", ["far", "near"])
@pytest.mark.parametrize(
    ("rows", "width", "k", "sigma", "spread"),
    [(500, 768, 300, 0.07, 1.0), (300, 768, 1, 0.01, 0.3), (300, 64, 300, 0.15, 3.0), (400, 100, 20, 3.0, 0.01)],
)
def test_a_round_of_real_size_keeps_what_a_search_of_every_candidate_keeps(rows, width, k, sigma, spread, selection):
    z = F.normalize(torch.randn(width) / width**0.5 + spread * torch.randn(rows, width) / width**0.5, dim=1)
    boundary, draws = torch.randperm(rows)[:4], torch.randn(60, width)
    found = sample_round(z, boundary, k, sigma, draws, 3, selection)
    check_round(found, slow_round(z, boundary, k, sigma, draws, 3, selection == "far", z), z, boundary, sigma, draws)


def test_round_off_cannot_drop_a_candidate():
    # All products have the same sign and size, so that float32 sums are off by as much as they can be, and the
    # candidates differ by less than that.
    z = torch.full((50, 1000), 1000**-0.5)
    z += 1e-6 * torch.randn(z.shape)
    z = F.normalize(z, dim=1)
    draws = torch.full((40, 1000), 1.0) + 1e-4 * torch.randn(40, 1000)
    args = (z, torch.arange(5), 30, 0.1, draws, 4)
    for selection in ("far", "near"):
        found = sample_round(*args, selection)
        expected = slow_round(*args, selection == "far", z)
        assert torch.allclose(found[2], expected[1], rtol=1e-5, atol=0)


def test_random_selection_keeps_every_draw_equally_often_and_none_twice():
    z, draws = unit(30, 8, torch.Generator().manual_seed(0)), torch.randn(10, 8)
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(200):
        rows, vectors, distance = sample_round(z, torch.arange(5), 3, 0.2, draws, 3, "random", generator=generator)
        assert all(len(set(row)) == 3 for row in rows.tolist())
        counts.update(rows.flatten().tolist())
    assert np.allclose(distance.flatten(), knn_distance(vectors.flatten(0, 1), z, 3), atol=1e-6)
    mean, deviation = 200 * 5 * 3 / 10, math.sqrt(200 * 5 * 0.3 * 0.7)
    assert all(abs(counts[draw] - mean) < 6 * deviation for draw in range(10))


def test_random_selection_is_that_of_its_generator():
    z, draws = unit(30, 8, torch.Generator().manual_seed(0)), torch.randn(100, 8)
    one, again, other = (
        sample_round(z, torch.arange(5), 3, 0.2, draws, 3, "random", generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 31}, "k=31 is not in 1..30"),
        ({"keep": 11}, "keep=11 is not in 1..10"),
        ({"keep": 0}, "keep=0 is not in 1..10"),
        ({"sigma": 0.0}, "sigma=0.0 is not a positive number"),
        ({"sigma": math.nan}, "sigma=nan is not a positive number"),
        ({"selection": "knn"}, "selection='knn' is unknown"),
    ],
)
def test_a_round_out_of_range_is_refused(change, says):
    args = {"k": 3, "sigma": 0.1, "draws": torch.randn(10, 8), "keep": 2} | change
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        sample_round(F.normalize(torch.randn(30, 8), dim=1), torch.arange(5), **args)


# ------------------------------------------------------------------------------------------------------ all classes


@hypothesis_settings(max_examples=60, deadline=None)
@given(rounds(), st.integers(1, 30), st.floats(0.1, 3), st.sampled_from(["far", "near"]), st.data())
def test_a_round_against_all_classes_measures_to_all_of_them(args, others, apart, selection, data):
    z, boundary, k, sigma, draws, keep = args
    more = F.normalize(z[:1] + apart * torch.randn(others, z.shape[1]), dim=1)
    bank = torch.cat([more, z])
    k = data.draw(st.integers(1, len(bank)))
    index = Index.of(bank, torch.device("cpu"))
    rows, vectors, distance = sample_round(z, boundary, k, sigma, draws, keep, selection, index)
    slow_rows, expected = slow_round(z, boundary, k, sigma, draws, keep, selection == "far", bank)
    # faiss measures in float32: near 0, the root of its round-off
    assert torch.allclose(distance, expected, atol=1e-3)
    assert torch.allclose(distance[distance > 0.1], expected[distance > 0.1], atol=1e-5)
    clear = (expected.diff(dim=1).abs() > 1e-3).all(1) & (keep < len(draws))
    assert torch.equal(rows[clear][:, :-1], slow_rows[clear][:, :-1])


def test_a_large_bank_is_searched_approximately_and_never_below_the_truth(monkeypatch):
    monkeypatch.setattr(outliers, "IVF_FROM", 2000)
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(10, 32, generator=generator), dim=1)
    bank = F.normalize(centres.repeat_interleave(200, 0) + 0.1 * torch.randn(2000, 32, generator=generator), dim=1)
    index = Index.of(bank, torch.device("cpu"))
    assert index.index.nprobe < index.index.nlist
    exact, found = knn_distance(bank, bank, 20), knn_distance(bank, index, 20)
    assert (found >= exact - 1e-5).all()
    assert (found < exact + 1e-5).float().mean() > 0.5
    far = knn_distance(bank, index, 1500)  # more neighbours than the nearest cells hold
    assert torch.allclose(far, knn_distance(bank, bank, 1500), atol=1e-5)
    z = bank[:200]
    rows, vectors, distance = sample_round(z, torch.arange(20), 20, 0.1, torch.randn(50, 32), 3, "far", index)
    assert (distance >= knn_distance(vectors.flatten(0, 1), bank, 20).view_as(distance) - 1e-5).all()


# ------------------------------------------------------------------------------------------------- boundary crossing


def slow_walk(z, label, anchors, temperature, step_size, extra_steps, max_steps):
    """BOOD for one embedding, with the gradient by autograd: where it ends, its steps, and the class crossed into."""

    def logits(x):
        return F.cosine_similarity(x[None], anchors, dim=1) / temperature

    def step(x):
        x = x.clone().requires_grad_()
        F.cross_entropy(logits(x)[None], torch.tensor([label])).backward()
        return x.detach() + step_size * x.grad.sign()

    steps = 0
    while int(logits(z).argmax()) == label:
        if steps == max_steps:
            return F.normalize(z, dim=0), -1, -1
        z, steps = step(z), steps + 1
    target = int(logits(z).argmax())
    for _ in range(extra_steps):
        z = step(z)
    return F.normalize(z, dim=0), steps, target


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.integers(2, 6),
    st.integers(2, 12),
    st.floats(0.005, 0.2),
    st.integers(0, 4),
    st.integers(1, 12),
)
def test_walks_are_those_of_one_embedding_at_a_time(seed, rows, classes, width, step_size, extra, most):
    generator = torch.Generator().manual_seed(seed)
    anchors = 0.4 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    z = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 0.5
    z = F.normalize(F.normalize(anchors, dim=1)[labels] + z, dim=1)
    found = cross_boundary(z, labels, anchors, 0.1, step_size, extra, most)
    for i in range(rows):
        vector, steps, target = slow_walk(z[i], int(labels[i]), anchors, 0.1, step_size, extra, most)
        assert (steps, target) == (int(found[1][i]), int(found[2][i]))
        assert torch.allclose(found[0][i], vector, atol=1e-6)


def test_an_embedding_leaves_its_class_even_where_its_probability_rounds_to_1():
    anchors = torch.eye(3)
    _, steps, target = cross_boundary(anchors, torch.arange(3), anchors, 1e-3, 0.05, 0, 100)
    assert F.softmax(anchors[0] / 1e-3, dim=0)[0] == 1
    assert (steps > 0).all() and (target != torch.arange(3)).all()


@many
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=30), st.floats(0.01, 1))
def test_the_soonest_are_the_share_with_fewest_steps_of_those_that_cross(steps, fraction):
    crossing = sorted((count, row) for row, count in enumerate(steps) if count > 0)
    expected = [row for _, row in crossing][: math.ceil(fraction * len(steps))]
    assert soonest(torch.tensor(steps), fraction).tolist() == expected


def test_a_class_whose_embeddings_all_lie_elsewhere_asks_for_a_better_space():
    with pytest.raises(InputError, match="none of 2 embeddings is nearest to its own class, .*train the space"):
        cross_class(torch.eye(3)[1:], 0, torch.eye(3), 0.1, OutlierSettings(**BOUNDARY))


def test_one_class_has_no_boundary():
    with pytest.raises(InputError, match="two classes or more"):
        cross_boundary(torch.eye(3), torch.zeros(3, dtype=torch.long), torch.ones(1, 3), 0.1, 0.1, 0, 5)


# ------------------------------------------------------------------------------------------------------------ sigma


@pytest.mark.parametrize("selection", ["far", "random"])
@pytest.mark.parametrize(("method", "multiple"), [("knn", 1.1), ("knn", 1.15), ("inlier", 0.9)])
def test_sigma_auto_puts_the_kept_at_the_multiple_of_the_id_99th_percentile(method, multiple, selection):
    z = unit(80, 32, torch.Generator().manual_seed(3))
    s = OutlierSettings(
        method=method, k=10, sigma="auto", multiple=multiple, select=20, n_boundary=20, n_draws=60, rounds=6,
        selection=selection,
    )  # fmt: skip
    distance = outliers.sample_class(z, 0, s)["distance"]
    goal = multiple * np.quantile([slow_distance(v, z.double().numpy(), 10) for v in z.double().numpy()], 0.99)
    assert distance[: 20 * s.keep].median() == pytest.approx(goal, rel=0.002)  # the draws that sigma was found with
    assert distance.median() == pytest.approx(goal, rel=0.05)  # fresh draws


@pytest.mark.parametrize(("multiple", "had"), [(0.2, "or more"), (5.0, "or less")])
def test_sigma_auto_says_what_can_be_had_where_the_multiple_cannot(multiple, had):
    s = OutlierSettings(k=10, sigma="auto", multiple=multiple, select=20, n_boundary=20, n_draws=60)
    with pytest.raises(
        InputError, match=rf"multiple {multiple:g} asks for a distance of .*, candidates have \S+ {had};"
    ):
        outliers.sample_class(unit(80, 32, torch.Generator().manual_seed(3)), 0, s)


# ------------------------------------------------------------------------- around anchors, as the real ones and random


def reference_anchors() -> Path | None:
    """The folder of real token embeddings: DREAM_TOKEN_EMBEDDINGS, or what lies beside the checkout."""
    folder = Path(os.environ.get("DREAM_TOKEN_EMBEDDINGS") or Path(__file__).parents[2] / "shared" / "reference")
    return folder if (folder / "token_embed_c100.npy").is_file() else None


def check_regions(anchors: torch.Tensor) -> None:
    """Outliers of classes around these anchors lie beyond fresh ID embeddings of their class, inliers among them."""
    generator = torch.Generator().manual_seed(0)
    common = {"k": 60, "select": 20, "n_boundary": 20, "n_draws": 200, "rounds": 2}
    for label, anchor in enumerate(F.normalize(anchors, dim=1)):
        noise = torch.randn(400, anchors.shape[1], generator=generator) / anchors.shape[1] ** 0.5
        z, fresh = F.normalize(anchor + noise, dim=1).split(200)
        known = knn_distance(fresh, z, 60)
        out = outliers.sample_class(z, label, OutlierSettings(method="knn", sigma=0.07, **common))["distance"]
        inside = outliers.sample_class(z, label, OutlierSettings(method="inlier", sigma=0.01, **common))["distance"]
        assert out.quantile(0.05) > known.quantile(0.99)
        assert inside.quantile(0.95) < known.quantile(0.5)


def test_outliers_leave_the_region_of_their_class_and_inliers_do_not():
    check_regions(0.39 * F.normalize(torch.randn(3, 768, generator=torch.Generator().manual_seed(1)), dim=1))


@pytest.mark.parametrize("name", ["token_embed_c100.npy", "token_embed_in100.npy"])
def test_around_real_token_embeddings_outliers_leave_the_region_of_their_class(name):
    folder = reference_anchors()
    if folder is None:
        pytest.skip("no token embeddings; DREAM_TOKEN_EMBEDDINGS names the folder that has them")
    check_regions(torch.from_numpy(np.load(folder / name, allow_pickle=False))[::25])


# -------------------------------------------------------------------------------------------------------- the stage

NAMES = ["cat", "dog", "emu"]
SMALL = {"k": 5, "sigma": 0.15, "select": 10, "n_boundary": 6, "n_draws": 20, "keep": 2, "rounds": 3}


class World:
    """A space of three classes on disk, as the stages before this one leave it, and configs that sample in it."""

    def __init__(self, folder: Path, monkeypatch, counts=(30, 25, 40), width: int = 12) -> None:
        generator = torch.Generator().manual_seed(5)
        self.folder = folder
        self.anchors = F.normalize(torch.randn(3, width, generator=generator), dim=1) * torch.tensor(
            [[0.3], [0.4], [0.5]]
        )
        self.labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
        self.labels = self.labels[torch.randperm(len(self.labels), generator=generator)]
        noise = 0.8 * torch.randn(len(self.labels), width, generator=generator) / width**0.5
        self.z = F.normalize(F.normalize(self.anchors, dim=1)[self.labels] + noise, dim=1)
        monkeypatch.setattr(anchors_stage, "run", lambda config: self.artifact("anchors", anchors=self.anchors))
        monkeypatch.setattr(
            space_stage,
            "run",
            lambda config: self.artifact("embeddings", embeddings=self.z, labels=self.labels),
        )

    def artifact(self, stage: str, **tensors: torch.Tensor) -> store.Artifact:
        inputs = {name: tensor.tolist() for name, tensor in tensors.items() if tensor.isfinite().all()}
        return store.build(
            self.folder / "upstream",
            stage,
            inputs,
            lambda made: store.write_tensors(made / f"{stage}.safetensors", **tensors),
        )

    def config(self, cache: str = "cache", **changes):
        path = self.folder / "world.yml"
        sampler = changes if changes.get("method") == "boundary" else SMALL | changes
        dream = {
            "class_names": NAMES,
            "generator": "some/model",
            "cache_dir": str(self.folder / cache),
            "outliers": sampler,
        }
        path.write_text(yaml.safe_dump({"device": "cpu", "dataset": {"num_classes": 3}, "dream": dream}))
        return load_config([path])

    def run(self, cache: str = "cache", **changes) -> store.Artifact:
        return outliers.run(self.config(cache, **changes))


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return World(tmp_path, monkeypatch)


BOUNDARY = {"method": "boundary", "k": 5, "fraction": 0.4, "step_size": 0.05}
METHODS = [
    {},
    {"method": "inlier", "sigma": 0.02},
    {"selection": "random"},
    {"neighbours": "all"},
    {"sigma": "auto", "multiple": 1.2},
    BOUNDARY,
]


def content(artifact: store.Artifact) -> dict[str, bytes]:
    return {
        file.relative_to(artifact.path).as_posix(): file.read_bytes()
        for file in sorted(artifact.path.rglob("*"))
        if file.is_file() and file.name not in (".lock", store.MANIFEST)
    }


@pytest.mark.parametrize("changes", METHODS, ids=str)
def test_the_table_says_of_every_embedding_what_it_is(world, changes):
    artifact = world.run(**changes)
    table, embeddings = outliers.load(artifact)
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


@pytest.mark.parametrize("changes", [m for m in METHODS if m != BOUNDARY], ids=str)
def test_every_embedding_can_be_made_again_from_its_row(world, changes):
    artifact = world.run(**changes)
    table, embeddings = outliers.load(artifact)
    assert len(table) == 3 * 3 * 6 * 2 and table[["steps", "target"]].isna().all(axis=None)
    for i in range(0, len(table), 5):
        label = int(table["class"][i])
        draws = torch.randn(20, 12, generator=torch.Generator().manual_seed(int(table["seed"][i])))
        sigma = artifact.manifest["classes"][label]["sigma"]
        v = world.z[table["boundary"][i]] + sigma * draws[table["draw"][i]]
        assert torch.allclose(embeddings[i], world.anchors[label].norm() * F.normalize(v, dim=0), atol=1e-6)


def test_outliers_are_the_best_candidates_around_the_farthest_embeddings(world):
    table, _ = outliers.load(world.run(n_boundary=10))
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


def test_rounds_go_around_all_boundary_points_with_draws_of_their_own(world):
    table, _ = outliers.load(world.run(n_boundary=3, rounds=20))
    used = table.groupby(["class", "seed"])["boundary"]
    assert len(used) == 3 * 20 and (used.nunique() == 3).all()
    assert table["seed"].nunique() == 3 * 20
    assert (table.groupby("class")["boundary"].nunique() == 10).all()


def test_crossing_embeddings_are_in_another_class_and_all_walks_are_reported(world):
    artifact = world.run(**BOUNDARY, extra_steps=0)
    table, embeddings = outliers.load(artifact)
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


def test_the_manifest_has_the_quantiles_of_both_sides(world):
    artifact = world.run()
    table, _ = outliers.load(artifact)
    for label, about in enumerate(artifact.manifest["classes"]):
        z = world.z[world.labels == label]
        assert (about["name"], about["sigma"]) == (NAMES[label], 0.15)
        for key, values in (
            ("id_distance", knn_distance(z, z, 5)),
            ("distance", table["distance"][table["class"] == label]),
        ):
            assert about[key]["p50"] == pytest.approx(np.quantile(values, 0.5), rel=1e-6)
            assert about[key]["p99"] == pytest.approx(np.quantile(values, 0.99), rel=1e-6)


def test_a_second_run_samples_nothing(world, monkeypatch):
    first = world.run()
    monkeypatch.setattr(outliers, "sample_class", None)
    again = world.run()
    assert again.reused and not first.reused and content(again) == content(first)


def test_only_settings_that_matter_name_the_artifact(world):
    first = world.run()
    assert world.run(max_steps=7, multiple=3.0).reused
    assert world.run(seed=1).hash != first.hash
    assert world.run(**BOUNDARY).hash == world.run(**BOUNDARY, sigma=0.3, seed=4).hash
    assert world.run(sigma="auto").hash != world.run(sigma="auto", multiple=1.2).hash


@pytest.mark.parametrize("changes", METHODS, ids=str)
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(world, monkeypatch, changes):
    whole = world.run("whole", **changes)
    name = "cross_class" if changes == BOUNDARY else "sample_class"
    sample, sampled = getattr(outliers, name), []

    def interrupted(z, label, *args):
        sampled.append(label)
        if sampled == [0, 1]:
            raise KeyboardInterrupt
        return sample(z, label, *args)

    monkeypatch.setattr(outliers, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.run("parts", **changes)
    parts = world.run("parts", **changes)
    assert sampled == [0, 1, 1, 2]
    assert content(parts) == content(whole)
    assert parts.manifest["classes"] == whole.manifest["classes"]
    assert not (parts.path / "classes").exists()


def test_a_class_does_not_depend_on_the_others(world):
    before, embeddings = outliers.load(world.run())
    world.z[world.labels == 0] = F.normalize(torch.randn(30, 12), dim=1)
    after, changed = outliers.load(world.run())
    kept = (before["class"] > 0).tolist()
    assert torch.equal(embeddings[kept], changed[kept]) and before[kept].equals(after[kept])
    assert not torch.equal(embeddings[:36], changed[:36])


def test_another_seed_gives_other_draws(world):
    one, other = (outliers.load(world.run(seed=seed))[1] for seed in (0, 1))
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
        ({"k": 25, "select": 9}, None, "world.yml: dream.outliers.k: 25 is not below 25, .* class 'dog'; lower k"),
        ({"k": 95, "neighbours": "all"}, None, "world.yml: dream.outliers.k: 95 is not below 95, .* all classes"),
        ({**BOUNDARY, "k": 40}, None, "world.yml: dream.outliers.k: 40 is not below 25, .* class 'dog'"),
        ({"select": 26}, None, "world.yml: dream.outliers.select: 26 boundary points of class 'dog', which has 25"),
        ({}, spoil_nan, "embeddings.safetensors: embeddings: row 17 is not finite"),
        ({}, spoil_zero, "embeddings.safetensors: embeddings: row 18 is zero"),
        ({}, spoil_length, "embeddings.safetensors: embeddings: row 19 has norm 2, expected 1; delete its folder"),
        ({}, spoil_width, "embeddings.safetensors: embeddings of 12 dimensions for anchors of 8; delete its folder"),
        ({}, spoil_class, "no embedding of class 'dog': 3 anchors, and embeddings of 2 classes"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(world, changes, spoil, says):
    if spoil:
        spoil(world)
    with pytest.raises(InputError, match=says) as caught:
        world.run(**changes)
    assert "\n" not in str(caught.value)
    assert not (world.folder / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sigma": "auto", "multiple": 9.0}, "world.yml: dream.outliers: class 'cat': sigma auto: multiple 9 asks for"),
        ({**BOUNDARY, "max_steps": 1, "step_size": 0.001}, "class 'cat': none of 30 embeddings crosses the boundary"),
    ],
)
def test_settings_that_find_nothing_name_the_class(world, changes, says):
    with pytest.raises(InputError, match=says):
        world.run(**changes)


def test_outliers_of_the_tiny_chain_fit_its_space(chain):
    table, embeddings = outliers.load(chain.outliers)
    assert embeddings.shape == (6 * 5 * 2, 16) and len(table) == 60
    labels = space_stage.load(chain.space)["labels"]
    assert (labels[torch.tensor(table["boundary"])].numpy() == table["class"]).all()


def test_plain_takes_the_anchor_of_each_class_in_the_place_of_outliers(tiny, chain):
    artifact = outliers.run(tiny.config("--dream.outliers.method", "plain"))
    table, embeddings = outliers.load(artifact)
    anchors_of = anchors_stage.load(chain.anchors)
    assert table["class"].tolist() == list(range(6)) and torch.allclose(embeddings, anchors_of, atol=1e-6)
    z = space_stage.load(chain.space)
    for row in table.itertuples():
        own = z["embeddings"][z["labels"] == row[1]]
        nearest = torch.cdist(F.normalize(anchors_of[row[1]][None], dim=1), own).sort().values[0, 4]
        assert row.distance == pytest.approx(nearest.item(), abs=1e-5)
