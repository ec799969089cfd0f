"""Generative networks by config: what they see of a loader's batches, what they learn, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openood_dream import data, store
from openood_dream.config import Config, InputError, load_config, settings
from openood_dream.generative.frequency import grey, high_frequency
from openood_dream.generative.network import Generative, pixel_probability
from openood_dream.networks import get_network, load_weights
from openood_dream.trainers import TRAINERS

SIZES = {
    "vae": {"latent": 8, "width": 8},
    "glow": {"levels": 2, "steps": 2, "width": 16},
    "pixelcnnpp": {"resnets": 1, "filters": 8, "mixtures": 2, "dropout": 0.0},
}


def section(name: str, **keys) -> Config:
    return Config(name=name, image_size=8, channels=1, normalization_type="digits", **SIZES[name]) | keys


def network(name: str, **keys) -> Generative:
    torch.manual_seed(0)
    return get_network(Config(network={**section(name), **keys}))


@pytest.mark.parametrize("normalization", ["cifar10", "digits"])
def test_a_network_sees_the_very_pixels_of_the_files(normalization, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng().integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    store.write_imglist(tmp_path / "list.txt", [(f"{number}.png", 0) for number in range(3)])
    images = data.ImageList(tmp_path / "list.txt", tmp_path, pre_size=8, image_size=8, normalization=normalization)
    batch, expected = images.__getitems__([0, 1, 2])["data"], torch.from_numpy(pixels).permute(0, 3, 1, 2)
    net = network("vae", channels=3, normalization_type=normalization)
    assert torch.equal(net.image(batch), expected) and torch.equal(net.pixels(batch), expected)
    both = network("vae", channels=3, normalization_type=normalization, frequency=True).pixels(batch)
    assert torch.equal(both[:, :3], expected) and torch.equal(both[:, 3:], high_frequency(expected))
    one = network("vae", normalization_type=normalization).image(batch)
    assert (one - grey(expected)).abs().max() <= 0.501  # the nearest, and of two that are as near either


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 8, 8), (2, 3, 8, 16)])
def test_images_of_another_size_or_channel_count_are_refused(shape):
    with pytest.raises(InputError, match=f"expected images of 3x8x8, got {shape[1]}x{shape[2]}x{shape[3]}"):
        network("vae")(torch.zeros(shape))


@pytest.mark.parametrize("frequency", [True, False])
def test_a_checkpoint_of_the_other_frequency_setting_is_refused_by_name(frequency, tmp_path):
    file = tmp_path / "other.ckpt"
    torch.save(network("vae", frequency=not frequency).state_dict(), file)
    net = network("vae", frequency=frequency)
    with pytest.raises(InputError) as error:
        load_weights(net, file)
    assert str(file) in str(error.value) and "high-frequency channel" in str(error.value)
    same = tmp_path / "same.ckpt"
    torch.save(net.state_dict(), same)
    load_weights(net, same)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"name": "vae", "image_size": 12}, "image_size: expected a power of two, got 12"),
        ({"name": "glow", "image_size": 12, "levels": 3}, "image_size: expected a multiple of 8"),
        ({"name": "pixelcnnpp", "image_size": 10}, "image_size: expected a multiple of 4"),
        ({"name": "vae", "image_size": 8, "channels": 2}, "channels: expected 1 or 3, got 2"),
        ({"name": "vae", "image_size": 8, "widht": 4}, "unknown key; did you mean 'width'?"),
    ],
)
def test_impossible_networks_are_refused(keys, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        settings(Config(network=keys), "network")


# ---------------------------------------------------------------------------------------------------------- training


def job(tiny, name: str, frequency: bool, *overrides: str) -> Config:
    layers = [f"networks/{name}_small.yml", "pipelines/train/frl.yml"]
    sizes = [word for key, value in SIZES[name].items() for word in (f"--network.{key}", str(value))]
    keys = ["--trainer.frequency", str(frequency).lower(), "--network.channels", "1", "--device", "cpu"]
    small = ["--dataset.image_size", "8", "--dataset.pre_size", "8", "--dataset.train.batch_size", "32"]
    return tiny.config(*sizes, *keys, *small, *overrides, layers=layers)


def independent_bits(train: torch.Tensor, test: torch.Tensor) -> float:
    """Bits per dimension of test pixels under the histogram of each training pixel, every value counted once more."""
    counts = torch.nn.functional.one_hot(train.flatten(1).long(), 256).sum(0) + 1.0
    p = counts / counts.sum(1, keepdim=True)
    return -p[torch.arange(p.shape[0]), test.flatten(1).long()].log2().mean().item()


@pytest.mark.parametrize(
    "name, epochs", [("vae", 25), ("glow", 12), pytest.param("pixelcnnpp", 8, marks=pytest.mark.slow)]
)
def test_networks_learn_more_of_digits_than_each_pixel_alone_tells(tiny, name, epochs):
    config = job(tiny, name, False, "--optimizer.lr", "0.005")
    data.ensure(config)
    torch.manual_seed(0)
    net = get_network(config)
    loader, test = data.id_loader(config, "train", augment=True), data.id_loader(config, "test")
    trainer = TRAINERS["frl"](net, loader, config)
    losses = [trainer.train_epoch(epoch + 1)[1]["loss"] for epoch in range(epochs)]
    bits = -math.log2(pixel_probability(net, test, torch.device("cpu")))
    train_images, test_images = (
        torch.cat([net.image(batch["data"]) for batch in of]) for of in (data.id_loader(config, "train"), test)
    )
    assert losses[-1] < losses[0]
    assert bits < independent_bits(train_images, test_images) < 8


def test_the_trainer_refuses_classifiers_and_another_frequency_setting(tiny):
    classifier = tiny.config("--trainer.name", "frl", "--trainer.frequency", "false")
    with pytest.raises(InputError, match="frl needs a generative network"):
        TRAINERS["frl"](get_network(classifier), [None], classifier)
    config = job(tiny, "vae", True)
    config.network.frequency = False
    with pytest.raises(InputError, match="network.frequency"):
        TRAINERS["frl"](get_network(config), [None], config)


def test_the_rate_halves_every_thirty_epochs(tiny):
    config = job(tiny, "vae", True)
    trainer = TRAINERS["frl"](get_network(config), [None] * 2, config)
    rates = []
    for _ in range(2 * 61):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.scheduler.step()
    assert rates[0] == rates[59] == 1e-3 and rates[60] == 5e-4 and rates[120] == 2.5e-4


def test_nothing_is_cropped_in_training(tiny):
    images = data.id_loader(load_config([tiny.file, "pipelines/train/frl.yml"]), "train", augment=True).dataset
    assert images.crop is False
    first = images.__getitems__([0])["data"]
    assert torch.equal(first, images.__getitems__([0])["data"])
