"""Generative networks by settings: what they see of a loader's batches, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_generative import network
from torch.utils.data import DataLoader

from openood_dream.config.schema import validated
from openood_dream.datasets.images import ImageList, Transform
from openood_dream.datasets.imglist import write_imglist
from openood_dream.errors import InputError
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.generative.frequency import grey, high_frequency
from openood_dream.networks.generative.network import pixel_probability
from openood_dream.networks.settings import network_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("normalization", ["cifar10", "digits"])
def test_it_sees_the_pixels_of_the_files(normalization, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    write_imglist(tmp_path / "list.txt", [(f"{number}.png", 0) for number in range(3)])
    images = ImageList(tmp_path / "list.txt", tmp_path, Transform(8, 8, normalization))
    batch, expected = images.__getitems__([0, 1, 2])["data"], torch.from_numpy(pixels).permute(0, 3, 1, 2)
    net = network("vae", channels=3, normalization_type=normalization)
    assert torch.equal(net.image(batch), expected) and torch.equal(net.pixels(batch), expected)
    both = network("vae", channels=3, normalization_type=normalization, frequency=True).pixels(batch)
    assert torch.equal(both[:, :3], expected) and torch.equal(both[:, 3:], high_frequency(expected))
    one = network("vae", normalization_type=normalization).image(batch)
    assert (one - grey(expected)).abs().max() <= 0.501  # the nearest, and of two that are as near either


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 8, 8), (2, 3, 8, 16)])
def test_images_of_another_shape(shape):
    with pytest.raises(InputError, match=f"^network.image_size: .*3x8x8.*{shape[1]}x{shape[2]}x{shape[3]}"):
        network("vae")(torch.zeros(shape))


@pytest.mark.parametrize("frequency", [True, False])
def test_checkpoint_of_the_other_frequency_setting(frequency, tmp_path):
    other, same = tmp_path / "other.ckpt", tmp_path / "same.ckpt"
    torch.save(network("vae", frequency=not frequency).state_dict(), other)
    net = network("vae", frequency=frequency)
    with pytest.raises(InputError, match=r"other\.ckpt: .*high-frequency channel.*network\.frequency"):
        load_weights(net, other)
    torch.save(net.state_dict(), same)
    load_weights(net, same)


@pytest.mark.parametrize(
    "keys, key, words",
    [
        ({"name": "vae", "image_size": 12}, "image_size", "power of two"),
        ({"name": "glow", "image_size": 12, "levels": 3}, "image_size", "multiple of 8"),
        ({"name": "pixelcnnpp", "image_size": 10}, "image_size", "multiple of 4"),
        ({"name": "vae", "image_size": 8, "channels": 2}, "channels", "got 2"),
        ({"name": "vae", "image_size": 8, "widht": 4}, "widht", "'width'"),
    ],
)
def test_impossible_settings(keys, key, words):
    with pytest.raises(InputError, match=rf"network\.{key}: .*{words}"):
        validated(network_model(keys["name"]), keys, ("network",))


@pytest.mark.parametrize("frequency", [False, True])
def test_pixel_probability(frequency):
    """The same each time, from the bound on all images, and without a trace in torch's random numbers."""
    net = network("glow", frequency=frequency)
    rows = [{"data": torch.rand(3, 8, 8) * 2 - 1, "label": 0} for _ in range(10)]
    before = torch.get_rng_state()
    first = pixel_probability(net.train(), DataLoader(rows, batch_size=4), CPU)
    assert torch.equal(torch.get_rng_state(), before) and not net.training
    assert first == pixel_probability(net, DataLoader(rows, batch_size=4), CPU)
    bits = -net(torch.stack([row["data"] for row in rows])).mean().item() / math.log(2) / net.dimensions
    assert -math.log2(first) == pytest.approx(bits, rel=0.01) and net.dimensions == 64 * (1 + frequency)
