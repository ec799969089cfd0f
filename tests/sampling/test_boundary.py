"""Boundary crossing against the walk of one embedding at a time, with the gradient by autograd."""

from __future__ import annotations

import math

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
        vector, steps, target = slow_walk(z[i], int(labels[i]), anchors, 0.1, step_size, extra, most)
        assert (steps, target) == (int(found[1][i]), int(found[2][i]))
        assert torch.allclose(found[0][i], vector, atol=1e-6)


def test_leaves_at_probability_1():
    anchors = torch.eye(3)
    _, steps, target = cross_boundary(anchors, torch.arange(3), anchors, 1e-3, 0.05, 0, 100)
    assert F.softmax(anchors[0] / 1e-3, dim=0)[0] == 1
    assert (steps > 0).all() and (target != torch.arange(3)).all()


@many
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=30), st.floats(0.01, 1))
def test_soonest(steps, fraction):
    crossing = sorted((count, row) for row, count in enumerate(steps) if count > 0)
    expected = [row for _, row in crossing][: math.ceil(fraction * len(steps))]
    assert soonest(torch.tensor(steps), fraction).tolist() == expected


def test_one_class():
    with pytest.raises(ValueError, match="two classes or more"):
        cross_boundary(torch.eye(3), torch.zeros(3, dtype=torch.long), torch.ones(1, 3), 0.1, 0.1, 0, 5)
