"""The k-th nearest row of a bank against sorting all distances in float64."""

from __future__ import annotations

import pytest
import torch

from openood_dream.sampling import nearest
from openood_dream.sampling.nearest import kth_distance, kth_smallest


def reference(x: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    gaps = x.double()[:, None] - bank.double()
    return gaps.norm(dim=2).sort(dim=1).values[:, k - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_equals_sorting(k, scale, dtype):
    torch.seed()
    bank, x = scale * torch.randn(40, 12, dtype=dtype), scale * torch.randn(30, 12, dtype=dtype)
    assert torch.equal(kth_distance(x, bank, k), reference(x, bank, k))


def test_as_on_a_gpu(monkeypatch):
    """Which is not waited for: all is measured in float64, where of rows that lie equally far any may count."""
    monkeypatch.setattr(nearest, "AT_HAND", frozenset())
    torch.seed()
    bank, x = torch.randn(40, 12), torch.randn(30, 12)
    for k in (1, 7, 40):
        torch.testing.assert_close(kth_distance(x, bank, k), reference(x, bank, k), rtol=1e-12, atol=0)


def test_rows_that_float32_cannot_tell_apart():
    """All distances agree to seven digits, so that every row is in question."""
    torch.seed()
    bank = torch.randn(12) + 1e-6 * torch.randn(50, 12)
    x = torch.randn(20, 12).double()
    for k in (1, 25, 50):
        assert torch.equal(kth_distance(x, bank, k), reference(x, bank, k))


def test_points_finer_than_the_bank():
    torch.seed()
    bank = torch.randn(60, 8)
    x = bank[:10].double() + 1e-12
    assert torch.equal(kth_distance(x, bank, 1), reference(x, bank, 1))
    assert (kth_distance(bank, bank, 1) == 0).all()


def test_squares_beyond_float32():
    torch.seed()
    bank, x = 1e25 * torch.randn(30, 6), 1e25 * torch.randn(9, 6)
    assert torch.equal(kth_distance(x, bank, 5), reference(x, bank, 5))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_less_precision(precision, monkeypatch):
    """What TF32 may round is in question too: products rounded to its ten digits change nothing."""
    torch.seed()
    bank, x = torch.randn(200, 16), torch.randn(50, 16)
    expected = reference(x, bank, 20)
    exact = torch.addmm

    def rounded(squares, a, b, alpha):
        def short(t):
            return (
                (t * 2**9 / t.abs().clamp_min(1e-9).log2().floor().exp2()).round()
                * t.abs().log2().floor().exp2()
                / 2**9
            )

        return exact(squares, short(a), short(b), alpha=alpha)

    monkeypatch.setattr(torch, "addmm", rounded)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(kth_distance(x, bank, 20), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_blocks_change_nothing(monkeypatch):
    torch.seed()
    bank, x = torch.randn(30, 4), torch.randn(25, 4)
    whole = kth_distance(x, bank, 3)
    monkeypatch.setattr("openood_dream.sampling.blocks.BLOCK", 64)
    assert torch.equal(kth_distance(x, bank, 3), whole)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_kth_smallest(k):
    torch.seed()
    values = torch.randn(3, 5, 9)
    values[0, 0, 2] = float("nan")
    found = kth_smallest(values, k)
    assert found.shape == (3, 5, 1)
    torch.testing.assert_close(found, values.sort(dim=-1).values[..., k - 1 : k], rtol=0, atol=0, equal_nan=True)
