"""PixelCNN++: what a pixel's distribution may depend on, and that it is one."""

from __future__ import annotations

import pytest
import torch

from openood_dream.networks.generative.base import scaled
from openood_dream.networks.generative.pixelcnnpp import PixelCNNpp, draw_pixel, log_mixture


@pytest.fixture
def model() -> PixelCNNpp:
    torch.manual_seed(0)
    return PixelCNNpp(3, 8, resnets=1, filters=6, mixtures=2, dropout=0.5).double().eval()


def test_pixels_depend_on_those_before_alone(model):
    x = (255 * torch.rand(1, 3, 8, 8).double()).requires_grad_()
    numbers = model(x)
    for row, column in [(0, 0), (0, 5), (3, 0), (4, 4), (7, 7)]:
        (gradient,) = torch.autograd.grad(numbers[0, row, column].sum(), x, retain_graph=True)
        place = torch.arange(64).view(8, 8)
        seen = gradient.abs().sum((0, 1)) > 0
        assert not seen[place >= 8 * row + column].any()
    assert seen[0].sum() >= 6 and seen.sum() > 55  # the last pixel sees nearly all of the image


def test_channels_depend_on_those_before_alone():
    """Summed over the values of later channels, the rest is a distribution of its own."""
    numbers = torch.randn(1, 1, 1, 3, 1 + 6 + 3).double()
    values = torch.arange(256)
    for first, second in ((0, 200), (90, 255)):
        x = torch.stack([torch.full((256,), first), torch.full((256,), second), values], 1).view(256, 3, 1, 1)
        joint = log_mixture(scaled(x.double()), numbers.expand(256, -1, -1, -1, -1)).logsumexp(0)
        pair = log_mixture(scaled(x[:1, :2].double()), without_last(numbers))
        assert joint.item() == pytest.approx(pair.item(), abs=1e-9)


def without_last(numbers: torch.Tensor) -> torch.Tensor:
    """The numbers of the first two of three channels: weight, means, log scales, one coefficient."""
    return numbers[..., [0, 1, 2, 4, 5, 7]]


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_probabilities_sum_to_one(spread):
    grid = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"), -1).view(-1, 2, 1, 1)
    numbers = (spread * torch.randn(1, 1, 1, 4, 6)).double().expand(len(grid), -1, -1, -1, -1)
    assert log_mixture(scaled(grid.double()), numbers).logsumexp(0).exp().item() == pytest.approx(1, abs=1e-9)


def test_far_values_stay_finite():
    numbers = torch.zeros(2, 1, 1, 1, 3)
    numbers[..., 1], numbers[..., 2] = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), -20.0
    numbers.requires_grad_()
    log_p = log_mixture(scaled(torch.tensor([255, 3])).view(2, 1, 1, 1), numbers).sum()
    (gradient,) = torch.autograd.grad(log_p, numbers)
    assert log_p.isfinite() and gradient.isfinite().all()


def test_drawn_pixels_follow_the_distribution():
    numbers = torch.tensor([[[0.3, -0.2, 0.4, -2.0, -1.5, 0.8], [-0.3, 0.5, -0.6, -2.5, -2.0, -0.5]]])  # (1, M, 6)
    drawn = draw_pixel(numbers.expand(20000, -1, -1), 2).long()
    grid = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"), -1).view(-1, 2, 1, 1)
    p = log_mixture(scaled(grid), numbers.view(1, 1, 1, 2, 6).expand(len(grid), -1, -1, -1, -1)).exp().view(256, 256)
    coarse = p.view(8, 32, 8, 32).sum((1, 3))
    counts = torch.zeros(8, 8).index_put((drawn[:, 0] // 32, drawn[:, 1] // 32), torch.ones(20000), accumulate=True)
    assert ((counts / 20000 - coarse).abs() < 5 * (coarse / 20000).sqrt() + 1e-3).all()


def test_dropout_is_off_when_scoring(model):
    x, model = torch.randint(0, 256, (2, 3, 8, 8)), model.float()
    assert torch.equal(model.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("channels", [1, 4])
def test_samples_are_images(channels):
    drawn = PixelCNNpp(channels, 4, resnets=1, filters=4, mixtures=2).eval().sample(2)
    assert drawn.shape == (2, channels, 4, 4) and drawn.dtype == torch.uint8 and drawn.unique().numel() > 10
