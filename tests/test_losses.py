"""Losses: values worked out by hand or by pytorch-ood, slow obvious references, and gradients that push the right way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_ood.loss import EnergyRegularizedLoss, OutlierExposureLoss, VOSRegLoss
from torch import nn

from openood_dream import losses
from openood_dream.losses import energy, energy_regularisation, outlier_exposure


def test_energy():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    assert energy(logits).tolist() == pytest.approx([math.log(8), math.log(3)])


def test_energy_does_not_overflow():
    assert energy(torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]])).tolist() == pytest.approx(
        [1000, -1000 + math.log(2)]
    )


def linear(weight: list[float], bias: list[float]) -> nn.Linear:
    phi = nn.Linear(1, 2)
    phi.weight.data, phi.bias.data = torch.tensor(weight).view(2, 1), torch.tensor(bias)
    return phi


def test_energy_regularisation():
    # energies log 2 (ID) and log 4, log 8 (outliers); phi gives the logits (0, E), so p(ID) = e^E / (1 + e^E)
    id_logits = torch.tensor([[0.0, 0.0]])
    outlier_logits = torch.tensor([[math.log(2)] * 2, [math.log(4)] * 2])
    found = energy_regularisation(id_logits, outlier_logits, linear([0.0, 1.0], [0.0, 0.0]))
    assert found.item() == pytest.approx(-(math.log(2 / 3) + math.log(1 / 5) + math.log(1 / 9)) / 3)


def test_energy_regularisation_gradients():
    id_logits, outlier_logits = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    phi = linear([0.0, 1.0], [0.0, 0.0])  # already right in sign: larger energy is more ID
    energy_regularisation(id_logits, outlier_logits, phi).backward()
    assert (id_logits.grad < 0).all() and (outlier_logits.grad > 0).all()  # a step against the gradient
    assert phi.weight.grad.abs().min() > 0


def test_phi_learns():
    id_logits, outlier_logits = torch.randn(64, 3) + 3, torch.randn(64, 3) - 3
    phi = linear([0.0, -0.5], [0.0, 0.0])  # wrong way round
    optimizer = torch.optim.SGD(phi.parameters(), 0.5)
    for _ in range(300):
        loss = energy_regularisation(id_logits, outlier_logits, phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 and phi.weight[1] > phi.weight[0]


def test_outlier_exposure_is_cross_entropy_to_uniform():
    logits = torch.randn(6, 4)
    to_uniform = torch.stack([-sum(row.log_softmax(0)[c] / 4 for c in range(4)) for row in logits]).mean()
    assert outlier_exposure(logits).item() == pytest.approx(to_uniform.item(), abs=1e-5)
    assert outlier_exposure(torch.full((3, 4), 7.0)).item() == pytest.approx(math.log(4))


def test_outlier_exposure_gradient():
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    outlier_exposure(logits).backward()
    p = torch.tensor([2.0, 0.0, -1.0]).softmax(0)
    assert torch.allclose(logits.grad[0], p - 1 / 3, atol=1e-6)


def test_order_of_samples():
    id_logits, outlier_logits, phi = torch.randn(5, 3), torch.randn(4, 3), nn.Linear(1, 2)
    assert torch.allclose(
        energy_regularisation(id_logits, outlier_logits, phi),
        energy_regularisation(id_logits.flip(0), outlier_logits.flip(0), phi),
    )
    assert torch.allclose(outlier_exposure(outlier_logits), outlier_exposure(outlier_logits.flip(0)))


# ------------------------------------------------------------------------------------------- the same as pytorch-ood's


def test_outlier_exposure_is_pytorch_oods():
    logits, labels = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 1, -1, -1, -1, -1])
    theirs = OutlierExposureLoss(alpha=0.5, reduction="none")(logits, labels)  # each sample's; outliers come last
    assert 0.5 * outlier_exposure(logits[5:]).item() == pytest.approx(theirs[5:].mean().item(), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_energy_regularisation_is_pytorch_oods(weighted):
    logits, labels = 3 * torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 1, -1, -1, -1, -1])
    phi, weights = nn.Linear(1, 2), nn.Linear(4, 1)
    weights.weight.data = torch.tensor([[0.3, 2.0, -1.0, 0.7]]) if weighted else torch.ones(1, 4)
    mirrored = nn.Linear(1, 2)  # their energy has the other sign
    mirrored.weight.data, mirrored.bias.data = -phi.weight.data, phi.bias.data
    theirs = VOSRegLoss(mirrored, weights, alpha=2.0)(logits, labels) - F.cross_entropy(logits[:5], labels[:5])
    ours = energy_regularisation(logits[:5], logits[5:], phi, weights.weight[0] if weighted else None)
    assert 2.0 * ours.item() == pytest.approx(theirs.item(), rel=1e-4)


# -------------------------------------------------------------------------------------------------------- extra class


def test_energy_margins_push_both_ways_until_the_margins():
    id_logits = torch.tensor([[9.0, 0.0], [1.0, 0.0]], requires_grad=True)
    outlier_logits = torch.tensor([[-9.0, -9.0], [1.0, 0.0]], requires_grad=True)
    losses.energy_margins(id_logits, outlier_logits, 5.0, -5.0).backward()
    assert id_logits.grad[0].abs().sum() == 0 and (id_logits.grad[1] < 0).all()
    assert outlier_logits.grad[0].abs().sum() == 0 and (outlier_logits.grad[1] > 0).all()


def test_energy_margins_are_pytorch_oods():
    logits, labels = torch.randn(9, 4), torch.tensor([0] * 5 + [-1] * 4)
    with_margins, without = (
        EnergyRegularizedLoss(alpha=alpha, margin_in=-2.0, margin_out=-1.0)(logits, labels) for alpha in (1.0, 0.0)
    )
    ours = losses.energy_margins(logits[:5], logits[5:], 2.0, 1.0)
    assert ours.item() == pytest.approx((with_margins - without).item(), rel=1e-4)


def test_extra_class_makes_energy_log_odds():
    logits = torch.randn(5, 3)
    odds = losses.with_extra_class(logits).softmax(1)
    assert odds.shape == (5, 4)
    assert torch.allclose(energy(logits), (odds[:, :3].sum(1) / odds[:, 3]).log(), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- VOS


def test_virtual_outliers_are_the_least_likely_draws():
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64)
    covariance = root @ root.T + 0.1 * torch.eye(3)
    means = torch.randn(400, 3, dtype=torch.float64)
    fast = losses.virtual_outliers(means, covariance, 200, 2).view(400, 2, 3) - means[:, None]
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    draws = gaussian.sample((400, 200))
    least = gaussian.log_prob(draws).topk(2, dim=1, largest=False).indices
    slow = draws.gather(1, least[..., None].expand(-1, -1, 3))
    for rank in (0, 1):
        likelihoods = [gaussian.log_prob(found[:, rank]) for found in (fast, slow)]
        assert likelihoods[0].mean().item() == pytest.approx(likelihoods[1].mean().item(), abs=0.15)
        assert likelihoods[0].std().item() == pytest.approx(likelihoods[1].std().item(), rel=0.25)
    assert torch.allclose(fast[:, 0].T.cov(), slow[:, 0].T.cov(), rtol=0.35, atol=0.35 * covariance.max().item())
    assert (gaussian.log_prob(fast[:, 0]) <= gaussian.log_prob(fast[:, 1])).all()


def test_virtual_outliers_of_one_draw():
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    found = losses.virtual_outliers(torch.full((20_000, 2), 3.0), covariance, 1, 1)
    assert torch.allclose(found.mean(0), torch.tensor([3.0, 3.0]), atol=0.05)
    assert torch.allclose(found.T.cov(), covariance, atol=0.06)


@pytest.mark.parametrize("select", [0, 6])
def test_virtual_outliers_out_of_range(select):
    with pytest.raises(ValueError, match=rf"select={select} is not in 1\.\.5"):
        losses.virtual_outliers(torch.zeros(2, 3), torch.eye(3), 5, select)


# --------------------------------------------------------------------------------------------------------------- NPOS


def test_prototypes_move_image_by_image():
    prototypes = F.normalize(torch.randn(3, 5), dim=1)
    features, labels = F.normalize(torch.randn(7, 5), dim=1), torch.tensor([0, 2, 0, 0, 2, 0, 2])
    slow = prototypes.clone()
    for z, y in zip(features, labels):
        slow[y] = F.normalize(0.9 * slow[y] + (1 - 0.9) * z, dim=0)
    found = losses.moved_prototypes(prototypes, features, labels, 0.9)
    assert torch.allclose(found, slow, atol=1e-6) and torch.allclose(found[1], prototypes[1])


def test_first_images_make_the_prototype():
    features = F.normalize(torch.randn(2, 4), dim=1)
    found = losses.moved_prototypes(torch.zeros(3, 4), features, torch.tensor([1, 1]), 0.5)
    assert torch.allclose(found[1], F.normalize(features.sum(0), dim=0), atol=1e-6)
    assert found[[0, 2]].abs().sum() == 0


def test_dispersion_and_compactness():
    prototypes, features = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(2, 4), dim=1)
    labels, tau = [2, 0], 0.3
    spread = 0.0
    for i in range(3):
        spread += math.log(sum(math.exp(prototypes[i] @ prototypes[j] / tau) for j in range(3) if j != i) / 2) / 3
    assert losses.dispersion(prototypes, tau).item() == pytest.approx(spread, rel=1e-5)
    close = 0.0
    for z, y in zip(features, labels):
        close -= math.log(math.exp(z @ prototypes[y] / tau) / sum(math.exp(z @ p / tau) for p in prototypes)) / 2
    found = losses.compactness(features, prototypes, torch.tensor(labels), tau)
    assert found.item() == pytest.approx(close * tau / 0.07, rel=1e-5)


def test_dispersion_of_one_prototype():
    with pytest.raises(ValueError, match="1 prototypes"):
        losses.dispersion(torch.ones(1, 4), 0.1)


# ---------------------------------------------------------------------------------------------------------------- OAL


def test_distillation():
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    assert losses.distillation(student, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert losses.distillation(teacher, teacher).item() == pytest.approx(0)


def test_club():
    mean, log_variance, y = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)

    def log_q(i: int, j: int) -> torch.Tensor:
        return -((y[j] - mean[i]) ** 2 / (2 * log_variance[i].exp()) + log_variance[i] / 2).sum()

    pairs = sum(log_q(i, i) for i in range(6)) / 6
    combinations = sum(log_q(i, j) for i in range(6) for j in range(6)) / 36
    assert losses.club(mean, log_variance, y).item() == pytest.approx((pairs - combinations).item(), rel=1e-4)


def test_gaussian_fit():
    y = 2 + 3 * torch.randn(4000, 1)
    right = losses.gaussian_fit(torch.full_like(y, 2), torch.full_like(y, math.log(9)), y)
    for mean, variance in ((2.5, 9), (2, 7), (2, 12)):
        assert right < losses.gaussian_fit(torch.full_like(y, mean), torch.full_like(y, math.log(variance)), y)
