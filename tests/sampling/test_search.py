"""Search for the nearest rows: torch's answers are faiss's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openood_dream.postprocessors import neighbours
from openood_dream.sampling import blocks, knn, search
from openood_dream.sampling.knn import Index, knn_distance, sample_outliers
from openood_dream.sampling.search import ExactIndex, flat_index


def rows(count: int, width: int = 16) -> np.ndarray:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(count)), dim=1).numpy()


@pytest.mark.parametrize("inner", [False, True])
def test_as_faiss(inner, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed")
    monkeypatch.setattr(blocks, "BLOCK", 64)  # several blocks
    theirs, ours = flat_index(16, inner), ExactIndex(16, inner)
    for index in (theirs, ours):
        index.add(rows(300))
        index.add(rows(40))
    for mine, other in zip(ours.search(rows(50), 20), theirs.search(rows(50), 20)):
        assert mine.shape == other.shape and np.allclose(mine, other, atol=1e-5)


@pytest.fixture
def without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (search, knn):
        monkeypatch.setattr(module, "faiss", None)


def test_index_without_faiss_is_exact(without_faiss, monkeypatch):
    monkeypatch.setattr(knn, "IVF_FROM", 100)
    bank, x = torch.from_numpy(rows(300)), torch.from_numpy(rows(50))
    index = Index.of(bank, torch.device("cpu"))
    assert torch.equal(knn_distance(x, index, 20), knn_distance(x, bank, 20))
    found = sample_outliers(bank[:90], k=20, select=9, n_boundary=9, n_draws=30, rounds=2, index=index)
    assert torch.allclose(knn_distance(found["embeddings"], bank, 20), found["distance"], atol=1e-6)


def test_detectors_search_without_faiss(without_faiss):
    assert isinstance(neighbours.flat_index(3), ExactIndex)
