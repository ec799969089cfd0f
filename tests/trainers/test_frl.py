"""FRL trains generative networks by maximum likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from small_generative import SIZES, network
from torch.utils.data import DataLoader

from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.errors import InputError
from openood_dream.networks.features import embed
from openood_dream.networks.generative.network import Generative, pixel_probability
from openood_dream.trainers.known import TRAINERS
from openood_dream.trainers.settings import FRL

CPU = torch.device("cpu")


def trainer(net: torch.nn.Module, loader: object, *, frequency: bool, lr: float = 1e-3):
    optimizer = OptimizerSettings(name="adam", num_epochs=1, lr=lr, momentum=0.9, weight_decay=0.0)
    settings = FRL(name="frl", frequency=frequency)
    return TRAINERS["frl"](net, loader, settings=settings, optimizer=optimizer, precision="float32")


def independent_bits(train: torch.Tensor, test: torch.Tensor) -> float:
    """Bits per dimension of test pixels under the histogram of each training pixel, every value counted once more."""
    counts = torch.nn.functional.one_hot(train.flatten(1).long(), 256).sum(0) + 1.0
    p = counts / counts.sum(1, keepdim=True)
    return -p[torch.arange(p.shape[0]), test.flatten(1).long()].log2().mean().item()


@pytest.mark.parametrize(
    "name, epochs", [("vae", 25), ("glow", 12), pytest.param("pixelcnnpp", 8, marks=pytest.mark.slow)]
)
def test_networks_learn_more_than_each_pixel_alone_tells(tiny, name, epochs):
    sizes = [word for key, value in SIZES[name].items() for word in (f"--network.{key}", str(value))]
    small = ["--network.channels", "1", "--dataset.image_size", "8", "--dataset.pre_size", "8"]
    small += ["--trainer.frequency", "false", "--dataset.train.batch_size", "32"]
    experiment = tiny.config(*sizes, *small, layers=[f"networks/{name}_small.yml", "pipelines/train/frl.yml"])
    torch.manual_seed(0)
    net = Generative(experiment.network)
    data = experiment.data
    training = trainer(net, data.loader("dataset", "train", augment=True), frequency=False, lr=0.005)
    losses = [training.train_epoch(epoch + 1)[1]["loss"] for epoch in range(epochs)]
    bits = -math.log2(pixel_probability(net, data.loader("dataset", "test"), CPU))
    (train,), (test,) = (embed(net.image, data.loader("dataset", split), CPU) for split in ("train", "test"))
    assert losses[-1] < losses[0]
    assert bits < independent_bits(train, test) < 8


def test_classifiers_are_refused():
    with pytest.raises(InputError, match=r"^network\.name: "):
        trainer(torch.nn.Linear(2, 2), [None], frequency=False)


@pytest.mark.parametrize("frequency", [False, True])
def test_the_other_frequency_setting_is_refused(frequency):
    with pytest.raises(InputError, match=r"^network\.frequency: "):
        trainer(network("vae", frequency=frequency), [None], frequency=not frequency)


def test_the_shipped_optimiser_is_the_papers(tiny):
    options = tiny.config(layers=["networks/vae_small.yml", "pipelines/train/frl.yml"]).optimizer
    assert (options.name, options.lr, options.momentum, options.schedule) == ("adam", 1e-3, 0.9, "halving")


@pytest.mark.parametrize("name, cls", [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_config_chooses_the_optimiser(name, cls):
    options = OptimizerSettings(name=name, num_epochs=1, lr=0.1, momentum=0.9, weight_decay=0.0)
    net, settings = network("vae", frequency=True), FRL(name="frl", frequency=True)
    found = TRAINERS["frl"](net, DataLoader(torch.zeros(2)), settings=settings, optimizer=options, precision="float32")
    assert type(found.optimizer) is cls


def test_nothing_is_cropped(tiny):
    images = tiny.config(layers=["networks/vae_small.yml", "pipelines/train/frl.yml"]).data.images("dataset", "train")
    images = images.augmented()
    first = images.__getitems__([0])["data"]
    assert all(torch.equal(first, images.__getitems__([0])["data"]) for _ in range(5))
