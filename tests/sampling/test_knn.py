"""k-NN outliers: every step against a slow, obvious version of its equations."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_knn import slow_distance, slow_round, unit

from openood_dream.sampling import blocks, knn
from openood_dream.sampling.knn import Index, boundary_points, knn_distance, sample_outliers, sample_round

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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


@many
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.data())
def test_knn_distance(seed, n, rows, width, data):
    generator = torch.Generator().manual_seed(seed)
    bank = unit(rows, width, generator, data.draw(st.integers(1, rows))) * 3
    x = torch.cat([torch.randn(n, width, generator=generator), bank[:1]])
    k = data.draw(st.integers(1, rows))
    found = knn_distance(x, bank, k)
    expected = [slow_distance(v, bank.double().numpy(), k) for v in x.double().numpy()]
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_duplicates_are_0_apart():
    z = F.normalize(torch.randn(20, 768), dim=1)
    z[7] = z[3]
    assert (knn_distance(z, z, 1) == 0).all()
    assert (knn_distance(z, z, 2) == 0).nonzero()[:, 0].tolist() == [3, 7]


def test_blocks_change_nothing(monkeypatch):
    z, draws = unit(60, 16, torch.Generator().manual_seed(0)), torch.randn(90, 16)
    boundary, whole = torch.arange(10), knn_distance(z, z, 5)
    expected = sample_round(z, boundary, 5, 0.2, draws, 3)
    monkeypatch.setattr(blocks, "BLOCK", 200)
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
def test_unmeasurable_rows(x, bank, k, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        knn_distance(x, bank, k)


# ------------------------------------------------------------------------------------------------- boundary points


@many
@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans(), st.data())
def test_boundary_points(seed, rows, largest, data):
    z = unit(rows, 5, torch.Generator().manual_seed(seed), data.draw(st.integers(1, rows)))
    k, select = data.draw(st.integers(1, rows)), data.draw(st.integers(1, rows))
    index, distance = boundary_points(z, k, select, largest)
    d = np.array([slow_distance(v, z.double().numpy(), k) for v in z.double().numpy()], np.float32)
    expected = sorted(range(rows), key=lambda i: (-d[i] if largest else d[i], i))[:select]
    assert index.tolist() == expected
    assert np.allclose(distance, d[expected], atol=1e-6)


@pytest.mark.parametrize("select", [0, 5])
def test_select_beyond_class(select):
    with pytest.raises(ValueError, match=rf"select={select} is not in 1\.\.4"):
        boundary_points(torch.eye(4), 1, select)


# ------------------------------------------------------------------------------------------------------ one round


@many
@given(rounds(), st.booleans())
def test_round_is_exact(args, farthest):
    z, boundary, k, sigma, draws, keep = args
    found = sample_round(*args, "far" if farthest else "near")
    check_round(found, slow_round(*args, farthest, z), z, boundary, sigma, draws)


@pytest.mark.parametrize("selection", ["far", "near"])
@pytest.mark.parametrize(
    ("rows", "width", "k", "sigma", "spread"),
    [(500, 768, 300, 0.07, 1.0), (300, 768, 1, 0.01, 0.3), (300, 64, 300, 0.15, 3.0), (400, 100, 20, 3.0, 0.01)],
)
def test_round_of_real_size(rows, width, k, sigma, spread, selection):
    z = F.normalize(torch.randn(width) / width**0.5 + spread * torch.randn(rows, width) / width**0.5, dim=1)
    boundary, draws = torch.randperm(rows)[:4], torch.randn(60, width)
    found = sample_round(z, boundary, k, sigma, draws, 3, selection)
    check_round(found, slow_round(z, boundary, k, sigma, draws, 3, selection == "far", z), z, boundary, sigma, draws)


def test_round_off_drops_none():
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


def test_random_selection_is_uniform():
    z, draws = unit(30, 8, torch.Generator().manual_seed(0)), torch.randn(10, 8)
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(200):
        rows, vectors, distance = sample_round(z, torch.arange(5), 3, 0.2, draws, 3, "random", generator=generator)
        assert all(len(set(row)) == 3 for row in rows.tolist())
        counts.update(rows.flatten().tolist())
    assert np.allclose(distance.flatten(), knn_distance(vectors.flatten(0, 1), z, 3), atol=1e-6)
    mean, deviation = 200 * 5 * 3 / 10, math.sqrt(200 * 5 * 0.3 * 0.7)
    assert all(abs(counts[draw] - mean) < 6 * deviation for draw in range(10))


def test_random_selection_by_generator():
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
def test_round_out_of_range(change, says):
    args = {"k": 3, "sigma": 0.1, "draws": torch.randn(10, 8), "keep": 2} | change
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        sample_round(F.normalize(torch.randn(30, 8), dim=1), torch.arange(5), **args)


# ------------------------------------------------------------------------------------------------------ all classes


@settings(max_examples=60, deadline=None)
@given(rounds(), st.integers(1, 30), st.floats(0.1, 3), st.sampled_from(["far", "near"]), st.data())
def test_round_against_all_classes(args, others, apart, selection, data):
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


def test_index_of_rows_that_cannot_be_measured():
    bank = torch.eye(4)
    bank[2] = 0
    with pytest.raises(ValueError, match="bank: row 2 is zero"):
        Index.of(bank, torch.device("cpu"))


@pytest.mark.parametrize("trained_on", [2, 64])  # rows of a cell; few make worse cells, and no wrong distance
def test_large_bank(monkeypatch, trained_on):
    monkeypatch.setattr(knn, "IVF_FROM", 2000)
    monkeypatch.setattr(knn, "TRAINED_ON", trained_on)
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


@pytest.mark.parametrize("selection", ["far", "random"])
@pytest.mark.parametrize(("inliers", "multiple"), [(False, 1.1), (False, 1.15), (True, 0.9)])
def test_sigma_auto(inliers, multiple, selection):
    z = unit(80, 32, torch.Generator().manual_seed(3))
    distance = sample_outliers(
        z, k=10, sigma="auto", multiple=multiple, select=20, n_boundary=20, n_draws=60, rounds=6,
        selection=selection, inliers=inliers,
    )["distance"]  # fmt: skip
    goal = multiple * np.quantile([slow_distance(v, z.double().numpy(), 10) for v in z.double().numpy()], 0.99)
    assert distance[:40].median() == pytest.approx(goal, rel=0.002)  # the draws that sigma was found with
    assert distance.median() == pytest.approx(goal, rel=0.05)  # fresh draws


@pytest.mark.parametrize(("multiple", "had"), [(0.2, "or more"), (5.0, "or less")])
def test_sigma_auto_out_of_reach(multiple, had):
    z = unit(80, 32, torch.Generator().manual_seed(3))
    with pytest.raises(
        ValueError, match=rf"multiple {multiple:g} asks for a distance of .*, candidates have \S+ {had};"
    ):
        sample_outliers(z, k=10, sigma="auto", multiple=multiple, select=20, n_boundary=20, n_draws=60)


def reference_anchors() -> Path | None:
    """The folder of real token embeddings: DREAM_TOKEN_EMBEDDINGS, or what lies beside the checkout."""
    folder = Path(os.environ.get("DREAM_TOKEN_EMBEDDINGS") or Path(__file__).parents[3] / "shared" / "reference")
    return folder if (folder / "token_embed_c100.npy").is_file() else None


def check_regions(anchors: torch.Tensor) -> None:
    """Outliers of classes around these anchors lie beyond fresh ID embeddings of their class, inliers among them."""
    generator = torch.Generator().manual_seed(0)
    common = {"k": 60, "select": 20, "n_boundary": 20, "n_draws": 200, "rounds": 2}
    for label, anchor in enumerate(F.normalize(anchors, dim=1)):
        noise = torch.randn(400, anchors.shape[1], generator=generator) / anchors.shape[1] ** 0.5
        z, fresh = F.normalize(anchor + noise, dim=1).split(200)
        known = knn_distance(fresh, z, 60)
        outliers = sample_outliers(z, label=label, sigma=0.07, **common)["distance"]
        inliers = sample_outliers(z, label=label, sigma=0.01, inliers=True, **common)["distance"]
        assert outliers.quantile(0.05) > known.quantile(0.99)
        assert inliers.quantile(0.95) < known.quantile(0.5)


def test_outliers_leave_their_class():
    check_regions(0.39 * F.normalize(torch.randn(3, 768, generator=torch.Generator().manual_seed(1)), dim=1))


@pytest.mark.parametrize("name", ["token_embed_c100.npy", "token_embed_in100.npy"])
def test_real_token_embeddings(name):
    folder = reference_anchors()
    if folder is None:
        pytest.skip("no token embeddings; DREAM_TOKEN_EMBEDDINGS names the folder that has them")
    check_regions(torch.from_numpy(np.load(folder / name, allow_pickle=False))[::25])
