"""The loop that runs networks over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.datasets.images import Transform
from openood_dream.networks.features import accuracy, classify, embed

CPU = torch.device("cpu")


class Images(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.data, self.labels = torch.randn(count, 3, 8, 8), torch.arange(count) % 4

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        return {"data": self.data[index], "label": self.labels[index]}


@pytest.fixture
def images() -> Images:
    return Images(23)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))


def test_every_image_in_order_in_evaluation_mode(net, images):
    (found,) = embed(net.train(), DataLoader(images, batch_size=7), CPU)
    assert not net.training and not found.requires_grad and found.dtype == torch.float32
    torch.testing.assert_close(found, net(images.data).detach())


def test_each_output_of_a_function(images):
    low, high = embed(lambda x: (x.amin((1, 2, 3)), x.amax((1, 2, 3)).double()), DataLoader(images, batch_size=5), CPU)
    assert torch.equal(low, images.data.amin((1, 2, 3))) and torch.equal(high, images.data.amax((1, 2, 3)))
    assert high.dtype == torch.float32


def test_the_loader_is_iterated_once(net, images):
    """Each iteration of a DataLoader draws a seed from torch's generator."""
    loader = DataLoader(images, batch_size=8)
    for run in (embed, accuracy):
        torch.manual_seed(0)
        iter(loader)
        expected = torch.rand(1)
        torch.manual_seed(0)
        run(net, loader, CPU)
        assert torch.equal(torch.rand(1), expected)


def test_bfloat16_computes_in_it_and_returns_float32(net, images):
    loader = DataLoader(images, batch_size=8)
    (exact,), (rough,) = embed(net, loader, CPU), embed(net, loader, CPU, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32 and torch.equal(rough, rough.bfloat16().float())
    assert 0 < (exact - rough).abs().max() < 0.1


def test_accuracy(net, images):
    hits = (net.eval()(images.data).argmax(1) == images.labels).float().mean().item()
    assert accuracy(net.train(), DataLoader(images, batch_size=6), CPU) == pytest.approx(hits)
    assert not net.training


@pytest.mark.parametrize("size", [8, 20])
def test_classify_resizes_and_normalises(net, size):
    images, transform = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8), Transform(8, 8, "cifar10")
    x = F.interpolate(images / 255, (8, 8), mode="bilinear", antialias=True, align_corners=False)
    expected = net.eval()((x - transform.mean) / transform.std).detach()
    torch.testing.assert_close(classify(net, images, transform, CPU), expected, atol=1e-4, rtol=1e-4)
