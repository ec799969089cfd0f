"""The high-frequency channel."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import correlate1d

from openood_dream.networks.generative.frequency import high_frequency, with_high_frequency


def independent(image: np.ndarray) -> np.ndarray:
    """(grey - blur + 1) / 2 in 256 levels of an image (3, S, S), by scipy."""
    grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]) / 255
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 1.1) ** 2)
    weights /= weights.sum()
    blurred = correlate1d(correlate1d(grey, weights, axis=0, mode="mirror"), weights, axis=1, mode="mirror")
    return 255 * (grey - blurred + 1) / 2


def test_the_formula():
    images = np.random.default_rng().integers(0, 256, (5, 3, 16, 16))
    found = high_frequency(torch.from_numpy(images).to(torch.uint8))
    for channel, image in zip(found, images):
        assert np.abs(channel[0].numpy() - independent(image)).max() <= 0.501


def test_flat_image_and_bright_pixel():
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert high_frequency(flat).unique().tolist() in ([127], [128])
    spot = flat.clone()
    spot[:, :, 8, 8] = 255
    assert high_frequency(spot)[0, 0, 8, 8] > 180


def test_it_is_the_last_channel():
    for channels in (1, 3):
        image = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
        both = with_high_frequency(image)
        assert both.shape == (2, channels + 1, 8, 8) and both.dtype == torch.uint8
        assert torch.equal(both[:, :channels], image) and torch.equal(both[:, channels:], high_frequency(image))
    grey = image[:, :1]
    assert torch.equal(high_frequency(grey), high_frequency(grey.expand(-1, 3, -1, -1)))


def test_the_published_blur():
    images = np.random.default_rng().integers(0, 256, (4, 3, 12, 12))
    found = high_frequency(torch.from_numpy(images).to(torch.uint8), "published")
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for channel, image in zip(found, images):
        grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]) / 255
        blurred = correlate1d(correlate1d(grey, weights, axis=0, mode="constant"), weights, axis=1, mode="constant")
        assert np.abs(channel[0].numpy() - 255 * (grey - blurred + 1) / 2).max() <= 0.501
    bright = torch.full((1, 3, 12, 12), 255, dtype=torch.uint8)
    assert high_frequency(bright, "published")[0, 0, 0, 5] > 150 > high_frequency(bright)[0, 0, 0, 5]  # the frame
