"""Losses: values worked out by hand, and gradients that push the right way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from openood_dream.losses import energy, energy_regularisation, outlier_exposure


def test_the_energy_is_the_log_of_the_summed_exponentials():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    assert energy(logits).tolist() == pytest.approx([math.log(8), math.log(3)])


def test_the_energy_of_large_logits_does_not_overflow():
    assert energy(torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]])).tolist() == pytest.approx(
        [1000, -1000 + math.log(2)]
    )


def linear(weight: list[float], bias: list[float]) -> nn.Linear:
    phi = nn.Linear(1, 2)
    phi.weight.data, phi.bias.data = torch.tensor(weight).view(2, 1), torch.tensor(bias)
    return phi


def test_energy_regularisation_is_the_mean_binary_cross_entropy():
    # energies log 2 (ID) and log 4, log 8 (outliers); phi gives the logits (0, E), so p(ID) = e^E / (1 + e^E)
    inside = torch.tensor([[0.0, 0.0]])
    outside = torch.tensor([[math.log(2)] * 2, [math.log(4)] * 2])
    found = energy_regularisation(inside, outside, linear([0.0, 1.0], [0.0, 0.0]))
    assert found.item() == pytest.approx(-(math.log(2 / 3) + math.log(1 / 5) + math.log(1 / 9)) / 3)


def test_energy_regularisation_raises_id_energies_and_lowers_outlier_energies():
    inside, outside = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    phi = linear([0.0, 1.0], [0.0, 0.0])  # already right in sign: larger energy is more ID
    energy_regularisation(inside, outside, phi).backward()
    assert (inside.grad < 0).all() and (outside.grad > 0).all()  # a step against the gradient
    assert phi.weight.grad.abs().min() > 0


def test_phi_learns_to_tell_the_energies_apart():
    inside, outside = torch.randn(64, 3) + 3, torch.randn(64, 3) - 3
    phi = linear([0.0, -0.5], [0.0, 0.0])  # wrong way round
    optimizer = torch.optim.SGD(phi.parameters(), 0.5)
    for _ in range(300):
        loss = energy_regularisation(inside, outside, phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 and phi.weight[1] > phi.weight[0]


def test_outlier_exposure_is_the_cross_entropy_to_the_uniform_prediction_less_its_least_value():
    logits = torch.randn(6, 4)
    to_uniform = torch.stack([-sum(row.log_softmax(0)[c] / 4 for c in range(4)) for row in logits]).mean()
    assert outlier_exposure(logits).item() == pytest.approx(to_uniform.item(), abs=1e-5)
    assert outlier_exposure(torch.full((3, 4), 7.0)).item() == pytest.approx(math.log(4))


def test_outlier_exposure_pushes_to_the_uniform_prediction():
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    outlier_exposure(logits).backward()
    p = torch.tensor([2.0, 0.0, -1.0]).softmax(0)
    assert torch.allclose(logits.grad[0], p - 1 / 3, atol=1e-6)


def test_no_loss_depends_on_the_order_of_samples():
    inside, outside, phi = torch.randn(5, 3), torch.randn(4, 3), nn.Linear(1, 2)
    assert torch.allclose(
        energy_regularisation(inside, outside, phi), energy_regularisation(inside.flip(0), outside.flip(0), phi)
    )
    assert torch.allclose(outlier_exposure(outside), outlier_exposure(outside.flip(0)))
