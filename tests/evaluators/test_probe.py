"""The probe of image statistics: near 50 where sets differ by chance alone, near 100 where one is blurred."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from openood_dream.evaluators.probe import BANDS, image_statistics, probe


def textures(count: int, seed: int, size: int = 16) -> np.ndarray:
    """Random images whose brightness and contrast vary, uint8 (N, 3, S, S)."""
    rng = np.random.default_rng(seed)
    contrast, mean = rng.uniform(10, 60, (count, 3, 1, 1)), rng.uniform(80, 170, (count, 3, 1, 1))
    return np.clip(mean + contrast * rng.standard_normal((count, 3, size, size)), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray) -> np.ndarray:
    soft = [Image.fromarray(one.transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(0.5)) for one in images]
    return np.stack([np.asarray(one).transpose(2, 0, 1) for one in soft])


def slow_statistics(image: np.ndarray) -> tuple[list[float], list[float]]:
    """The definition: every coefficient of the discrete Fourier transform by its sum, each put into its band."""
    _, size, _ = image.shape
    luma = [
        [sum(part * float(image[c, i, j]) for c, part in enumerate((0.299, 0.587, 0.114))) for j in range(size)]
        for i in range(size)
    ]
    bands = min(BANDS, size // 2)
    width = (0.5 / bands) * 1.0
    found: list[list[float]] = [[] for _ in range(bands)]
    for u in range(size):
        for v in range(size):
            total = 0j
            for i in range(size):
                for j in range(size):
                    angle = -2 * math.pi * (u * i + v * j) / size
                    total += luma[i][j] * complex(math.cos(angle), math.sin(angle))
            fu, fv = (min(k, size - k) / size for k in (u, v))
            place = (math.sqrt(fu**2 + fv**2) - 0.5 / size) / width
            if 0 <= place < bands:
                found[int(place)].append(abs(total) ** 2 / size**2)
    spectrum = [math.log10(sum(powers) / len(powers) + 1 / 12) for powers in found]
    channels = [[float(x) for row in channel for x in row] for channel in image]
    means = [sum(values) / len(values) for values in channels]
    contrasts = [math.sqrt(sum((x - mean) ** 2 for x in values) / len(values)) for values, mean in zip(channels, means)]
    return spectrum, means + contrasts


@pytest.mark.parametrize("size", [2, 7, 12])
def test_statistics_are_their_definition(size):
    images = textures(3, 0, size)
    found = image_statistics(images)
    for row, image in enumerate(images):
        spectrum, colours = slow_statistics(image)
        assert found.spectra[row] == pytest.approx(spectrum) and found.colours[row] == pytest.approx(colours)


def test_large_images_have_as_many_bands_as_medium_ones():
    found = image_statistics(textures(2, 0, 96))
    assert found.spectra.shape == (2, BANDS) and len(found.frequencies) == BANDS
    assert np.isfinite(found.spectra).all() and found.frequencies[-1] == pytest.approx(0.5, abs=0.02)


def test_a_constant_image_has_statistics():
    found = image_statistics(np.full((1, 3, 8, 8), 7, np.uint8))
    assert found.spectra == pytest.approx(math.log10(1 / 12)) and found.colours.tolist() == [[7, 7, 7, 0, 0, 0]]


def test_images_of_one_kind_are_not_told_apart():
    assert probe(image_statistics(textures(600, 1)), image_statistics(textures(400, 2))) == pytest.approx(50, abs=6)


def test_blur_gives_images_away():
    images = textures(600, 1)
    assert probe(image_statistics(images[:300]), image_statistics(blurred(images[300:]))) > 97


def test_brightness_gives_images_away():
    images = textures(600, 1)
    brighter = np.clip(images[300:].astype(int) + 60, 0, 255).astype(np.uint8)
    assert probe(image_statistics(images[:300]), image_statistics(brighter)) > 75


def test_the_order_of_images_is_nothing_to_it():
    known, found = textures(80, 3), blurred(textures(60, 4))
    first = probe(image_statistics(known), image_statistics(found))
    mixed = np.random.default_rng(0).permutation(80)
    assert probe(image_statistics(known[mixed]), image_statistics(found[::-1])) == first


def test_too_few_images_are_refused_with_their_number():
    few, many = image_statistics(textures(4, 0)), image_statistics(textures(40, 0))
    with pytest.raises(ValueError, match="40 ID images and 4 outliers; expected at least 5"):
        probe(many, few)
