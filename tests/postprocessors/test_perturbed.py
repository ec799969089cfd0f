"""Detectors that run the network again: image by image, and once for all that is asked of the same images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.postprocessors.base import Images
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.postprocessors.settings import PostprocessorSettings


@pytest.fixture
def images() -> Images:
    """Nine images, the network between two batches of them."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5))
    rows = [{"data": torch.randn(3, 8, 8), "label": label % 5} for label in range(9)]
    return Images(net, DataLoader(rows, batch_size=6), torch.device("cpu"), "cifar10")


def odin(**args):
    cls = POSTPROCESSORS["odin"]
    return cls(cls.arguments(PostprocessorSettings(name="odin", postprocessor_args=args)))


@pytest.mark.parametrize(("dataset", "std"), [("cifar10", (0.2470, 0.2435, 0.2616)), ("birds", (0.5, 0.5, 0.5))])
def test_odin_formula(dataset, std, images):
    images = Images(images.net, images.loader, images.device, dataset)
    found = odin(temperature=2.0, noise=0.1)
    conf, predicted = found.confidence(images), found.prediction(images)
    for i, row in enumerate(images.loader.dataset):
        x = row["data"][None].clone().requires_grad_()
        (images.net(x) / 2).log_softmax(1).max().backward()  # the predicted class, whose probability is to rise
        moved = x.detach() + 0.1 * x.grad.sign() / torch.tensor(std).view(1, 3, 1, 1)
        p = (images.net(moved) / 2).softmax(1)
        assert conf[i].item() == pytest.approx(p.max().item(), abs=1e-5) and predicted[i] == p.argmax()


def test_odin_runs_the_network_once_for_the_same_images(images, monkeypatch):
    found, calls = odin(), []
    monkeypatch.setattr(images.net, "forward", lambda x, forward=images.net.forward: calls.append(1) or forward(x))
    found.confidence(images), found.prediction(images), found.confidence(images)
    assert len(calls) == 4  # two batches, before and after the step
    assert all(parameter.grad is None for parameter in images.net.parameters())


def test_odin_of_grey_images():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    loader = DataLoader([{"data": torch.randn(1, 4, 4), "label": 0}] * 2, batch_size=2)
    conf = odin().confidence(Images(net, loader, torch.device("cpu"), "digits"))
    assert conf.shape == (2,) and (conf > 1 / 3).all()
