"""Boundary crossing against the walk of one embedding at a time, with the gradient by autograd."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openood_dream.sampling.boundary import cross_boundary, soonest

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def slow_walk(z, label, anchors, temperature, step_size, extra_steps, max_steps):
    """BOOD for one embedding, with the gradient by autograd: where it ends, its steps, and the class crossed into."""

    def logits(x):
        return F.cosine_similarity(x[None], anchors, dim=1) / temperature

    def step(x):
        x = x.clone().requires_grad_()
        F.cross_entropy(logits(x)[None], torch.tensor([label])).backward()
        return x.detach() + step_size / math.sqrt(len(x)) * x.grad.sign()

    steps = 0
    while int(logits(z).argmax()) == label:
        if steps == max_steps:
            return F.normalize(z, dim=0), -1, -1, 0.0
        z, steps = step(z), steps + 1
    target = int(logits(z).argmax())
    margin = float(logits(z)[target] - logits(z)[label]) * temperature
    for _ in range(extra_steps):
        z = step(z)
    return F.normalize(z, dim=0), steps, target, margin


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.integers(2, 6),
    st.integers(2, 12),
    st.floats(0.005, 0.2),
    st.integers(0, 4),
    st.integers(1, 12),
)
def test_walks(seed, rows, classes, width, step_size, extra, most):
    generator = torch.Generator().manual_seed(seed)
    anchors = 0.4 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    z = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 0.5
    z = F.normalize(F.normalize(anchors, dim=1)[labels] + z, dim=1)
    found = cross_boundary(z, labels, anchors, 0.1, step_size, extra, most)
    for i in range(rows):
        vector, steps, target, margin = slow_walk(z[i], int(labels[i]), anchors, 0.1, step_size, extra, most)
        assert (steps, target) == (int(found.steps[i]), int(found.target[i]))
        assert torch.allclose(found.embeddings[i], vector, atol=1e-6)
        assert float(found.margin[i]) == pytest.approx(margin, abs=1e-6)


def test_leaves_at_probability_1():
    anchors = torch.eye(3)
    _, steps, target, _ = cross_boundary(anchors, torch.arange(3), anchors, 1e-3, 0.05, 0, 100)
    assert F.softmax(anchors[0] / 1e-3, dim=0)[0] == 1
    assert (steps > 0).all() and (target != torch.arange(3)).all()


@many
@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 3)), min_size=1, max_size=30), st.floats(0.01, 1))
def test_soonest(walks, fraction):
    crossing = sorted((count, -margin, row) for row, (count, margin) in enumerate(walks) if count > 0)
    expected = [row for *_, row in crossing][: math.ceil(fraction * len(walks))]
    steps, margin = (torch.tensor(column) for column in zip(*walks))
    assert soonest(steps, margin.float(), fraction).tolist() == expected


ANCHORS = os.environ.get("CIFAR100_ANCHORS")  # the token embeddings of CIFAR-100's names, (100, 768), as .npy


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=pytest.mark.skipif(not ANCHORS, reason="needs CIFAR100_ANCHORS"))]
)
def test_the_number_of_steps_tells_embeddings_apart(real):
    """As wide as Stable Diffusion's, of a space that knows its 100 classes."""
    generator = torch.Generator().manual_seed(0)
    anchors = (
        torch.from_numpy(np.load(ANCHORS)).float()
        if real
        else 0.39 * torch.randn(100, 768, generator=generator) / 768**0.5
    )
    noise = torch.randn(500, 768, generator=generator) / 768**0.5
    spread = torch.rand(500, 1, generator=generator) * 1.2  # from sure to doubtful images
    z = F.normalize(F.normalize(anchors, dim=1)[:1] + spread * noise, dim=1)
    found = cross_boundary(z, torch.zeros(500, dtype=torch.long), anchors)
    crossed = found.steps[found.steps > 0]
    assert len(crossed.unique()) >= (30 if real else 12) and len(crossed) > 400
    kept = soonest(found.steps, found.margin, 0.05)
    pairs = list(zip(found.steps[kept].tolist(), found.margin[kept].tolist()))
    assert len(set(pairs)) == len(kept) == 25  # no tie is left to the order of rows


def test_one_class():
    with pytest.raises(ValueError, match="two classes or more"):
        cross_boundary(torch.eye(3), torch.zeros(3, dtype=torch.long), torch.ones(1, 3), 0.1, 0.1, 0, 5)
