"""NCIS against one vector at a time, scikit-learn's PCA, and draws that are all made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from sklearn.decomposition import PCA

from openood_dream.sampling.ncis import (
    VolumePreserving,
    count_invariants,
    invariance_loss,
    sample,
    train,
    violation,
)

WIDTH = 7  # odd, so that the halves differ


@pytest.fixture
def net() -> VolumePreserving:
    torch.manual_seed(3)
    net = VolumePreserving(WIDTH, classes=2)
    with torch.no_grad():  # far from where it begins, as after a training
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


def curved(count: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of points (2 * count, 7) on sheets that a plane, which differs between them, is bent to."""
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(2 * count, 3, generator=generator)
    labels = torch.arange(2).repeat_interleave(count)
    bent = torch.stack([flat[:, 0] * flat[:, 1] / 2, flat[:, 2].square() / 2 - 0.5, flat[:, 0].sin(), flat[:, 1]], 1)
    x = torch.cat([flat, bent * (1 - 2 * labels[:, None])], dim=1)
    return x + 0.02 * torch.randn(x.shape, generator=generator), labels


def slow_forward(net: VolumePreserving, x: torch.Tensor, label: int) -> np.ndarray:
    """f for one vector, with the matrix exponential of SciPy."""
    value, half = x.double().numpy(), WIDTH // 2
    for number in range(len(net.skew)):
        skew = np.zeros((WIDTH, WIDTH))
        for i in range(WIDTH):
            for j in range(i + 1, WIDTH):
                skew[i, j] = net.skew[number, i, j].item()
                skew[j, i] = -skew[i, j]
        value = expm(skew) @ value + net.shift[number].detach().numpy()
        if number < len(net.couplings):
            rest = torch.tensor(value[None, half:], dtype=torch.float32)
            value[:half] += net.couplings[number](rest, torch.tensor([label]))[0].detach().numpy()
    return value


def test_forward(net):
    x, labels = torch.randn(6, WIDTH), torch.tensor([0, 1, 1, 0, 1, 0])
    slow = np.stack([slow_forward(net, row, label) for row, label in zip(x, labels.tolist(), strict=True)])
    assert np.abs(net(x, labels).detach().numpy() - slow).max() < 1e-4


def test_inverse_inverts(net):
    x, labels = 3 * torch.randn(50, WIDTH), torch.arange(50) % 2
    assert (net.inverse(net(x, labels), labels) - x).abs().max() < 1e-4
    assert (net(net.inverse(x, labels), labels) - x).abs().max() < 1e-4


def test_volumes_are_preserved(net):
    for label in (0, 1):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, label=label: net(x[None], torch.tensor([label]))[0], torch.randn(WIDTH)
        )
        assert torch.linalg.det(jacobian.double()).abs().item() == pytest.approx(1, abs=1e-4)


def test_classes_have_maps_of_their_own(net):
    x = torch.randn(1, WIDTH)
    assert not torch.allclose(net(x, torch.tensor([0])), net(x, torch.tensor([1])), atol=1e-2)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
def test_invariants_are_counted_as_by_scikit_learn(share):
    x, labels = curved()
    slow = []
    for label in (0, 1):
        explained = PCA().fit(x[labels == label].double().numpy()).explained_variance_ratio_.cumsum()
        slow.append(WIDTH - next(i for i, part in enumerate(explained) if part > 1 - share))
    assert count_invariants(x, labels, share) == sum(slow) // 2


def test_fewer_embeddings_than_dimensions_leave_the_rest_invariant():
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    assert count_invariants(x, torch.tensor([0, 0, 0, 1, 1, 1])) >= 38


def test_loss_is_of_invariants_and_of_the_way_back(net):
    x, labels = curved(8)
    y = net(x, labels)
    zeroed = torch.cat([y[:, :4], torch.zeros(len(y), 3)], dim=1)
    slow = y[:, 4:].pow(2).mean() + (net.inverse(zeroed, labels) - x).pow(2).mean()
    assert invariance_loss(net, x, labels, 3).item() == pytest.approx(slow.item(), rel=1e-5)


@pytest.fixture(scope="module")
def trained() -> VolumePreserving:
    torch.manual_seed(0)
    net = VolumePreserving(WIDTH, classes=2)
    losses = [*train(net, *curved(), 3, epochs=60, lr=1e-2)]
    assert len(losses) == 60 and losses[-1] < 0.3 * losses[0]
    return net


def test_outliers_violate_what_training_embeddings_keep(trained):
    x, labels = curved()
    for label in (0, 1):
        own = x[labels == label]
        outliers = sample(trained, own, label)
        assert outliers.shape == (100, WIDTH)
        kept, noise = violation(trained, own, label, 3), violation(trained, torch.randn(200, WIDTH), label, 3)
        assert kept < 0.4 * noise
        assert violation(trained, outliers, label, 3) > 2 * kept


def test_outliers_are_the_least_likely_of_all_draws(trained):
    x, labels = curved()
    own = x[labels == 1]
    y = trained(own, torch.ones(len(own), dtype=torch.long)).detach().double()
    gaussian = torch.distributions.MultivariateNormal(y.mean(0), y.T.cov() + 1e-5 * torch.eye(WIDTH))

    def likelihoods(found: torch.Tensor) -> torch.Tensor:
        return gaussian.log_prob(trained(found, torch.ones(len(found), dtype=torch.long)).detach().double())

    torch.manual_seed(4)
    slow = torch.cat([gaussian.log_prob(gaussian.sample((500,))).topk(5, largest=False).values for _ in range(200)])
    fast = likelihoods(sample(trained, own, 1, draws=500, keep=5, rounds=200))
    assert fast.mean().item() == pytest.approx(slow.mean().item(), abs=0.15)
    assert fast.std().item() == pytest.approx(slow.std().item(), rel=0.15)
    assert slow.mean() < likelihoods(own).mean() - 3


def test_draws_follow_the_seed(trained):
    own = curved()[0][:50]
    one, same, other = (sample(trained, own, 0, rounds=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.allclose(one, other)


def test_too_large_rate_is_said():
    with pytest.raises(ValueError, match="lower lr"):
        [*train(VolumePreserving(WIDTH, classes=2), *(curved(20)), 3, epochs=5, lr=1e30)]
