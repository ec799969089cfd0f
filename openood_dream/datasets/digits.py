"""The digits benchmark: scikit-learn's digits and photos in OpenOOD's layout, for a whole benchmark in minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_image

from openood_dream.datasets.made import finish, is_made, write_images
from openood_dream.store.artifacts import exclusive

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five")  # ID; six to nine are near-OOD
SHIFTED = ("test_rotated", "test_blurred", "test_noisy", "test_contrast")  # covariate-shifted ID test digits
UNSHIFTED = ("train", "val", "test", "val_turned", "test_near_digits", "test_flower", "test_scrambled", "train_aux")
DIGIT_SETS = (*UNSHIFTED, *SHIFTED, "train_pixel_noise")
COUNT = 400  # images of each outlier set

Images = list[tuple[np.ndarray, int]]  # uint8 (32, 32, 3) and the label of each


def make_digits(root: str | Path, seed: int = 0) -> None:
    """Writes the digits benchmark in OpenOOD's layout; the same files for the same seed.

    What is there already stays; an image that is missing or damaged is made again.

    ID digits zero to five (train 70 %, val 10 %, test 20 %), near-OOD six to nine, far-OOD patches of flower.jpg and
    scrambled ID test digits, auxiliary outliers for OE of china.jpg patches and blends of two ID training digits, OOD
    validation ID validation digits turned by a quarter. ID test digits rotated, blurred, noisy and of low contrast are
    the covariate-shifted sets, ID training digits under heavy noise a cheap kind of outliers. Patches have the grey
    values of ID digits, so that only their shapes tell them from digits. All 32x32 RGB PNG. No near-OOD class is in
    any set but its own.

    Args:
        root: the folder to write into.
        seed: of splits, patches, blends and shifts.

    Raises:
        InputError: `root` holds the digits of another seed.
    """
    root = Path(root)
    if is_made(root, "digits", seed):
        return
    with exclusive(root):
        if is_made(root, "digits", seed):  # by another process, while this one waited
            return
        lists, sizes = {}, dict[str, int]()
        for name, images in _sets(seed).items():
            folders = [DIGIT_NAMES[label] if label >= 0 else "ood" for _, label in images]
            files = [f"digits/{name}/{folder}/{number:04d}.png" for number, folder in enumerate(folders)]
            sizes |= write_images(root, zip(files, (image for image, _ in images)))
            lists[name] = [(file, label) for file, (_, label) in zip(files, images)]
        finish(root, "digits", lists, sizes, seed=seed, images={name: len(rows) for name, rows in lists.items()})


def _sets(seed: int) -> dict[str, Images]:
    """The images of each of DIGIT_SETS."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    upscaled = np.stack([_upscale(glyph) for glyph in digits.images])
    by_class = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(10)]
    members: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(len(DIGIT_NAMES)):
        cuts = [int(0.7 * len(by_class[label])), int(0.8 * len(by_class[label]))]
        for found, part in zip(members.values(), np.split(by_class[label], cuts)):
            found += part.tolist()
    splits: dict[str, Images] = {
        split: [(upscaled[i], int(digits.target[i])) for i in found] for split, found in members.items()
    }

    turned = [(np.rot90(image, turn), -1) for image, label in splits["val"] if label >= 2 for turn in (1, 3)]
    near = [upscaled[i] for label in range(len(DIGIT_NAMES), 10) for i in by_class[label]]
    train, test = digits.images[members["train"]], digits.images[members["test"]]
    flower, china = (load_sample_image(f"{name}.jpg") for name in ("flower", "china"))
    first, second = upscaled[rng.choice(members["train"], size=(2, COUNT))]
    sets = {
        "test_near_digits": near,
        "test_flower": _patches(flower, test, rng),
        "test_scrambled": [_upscale(rng.permuted(glyph.ravel()).reshape(8, 8)) for glyph in _drawn(test, rng)],
        "train_aux": [*_patches(china, train, rng), *np.maximum(first, second)],
    }
    outliers = {name: [(image, -1) for image in images] for name, images in sets.items()}
    return {**splits, "val_turned": turned, **outliers, **_changed(splits, seed)}


def _changed(splits: dict[str, Images], seed: int) -> dict[str, Images]:
    """The sets of changed ID digits, with random numbers of their own."""
    rng = np.random.default_rng([seed, 1])
    sets = {}
    for name, shift in zip(SHIFTED, (_rotated, _blurred, _noisy, _pale), strict=True):
        sets[name] = [(shift(image, rng), label) for image, label in splits["test"]]
    sets["train_pixel_noise"] = [(_noisy(image, rng, 120), -1) for image, _ in splits["train"]]
    return sets


def _rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 20 to 40 degrees to either side."""
    angle = rng.uniform(20, 40) * rng.choice([-1, 1])
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC))


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a radius of 2 to 4 pixels; 4 are one of the 8x8 real ones."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(2, 4))))


def _noisy(image: np.ndarray, rng: np.random.Generator, deviation: float = 60) -> np.ndarray:
    """Gaussian noise on every channel of every pixel."""
    return (image + rng.normal(0, deviation, image.shape)).clip(0, 255).round().astype(np.uint8)


def _pale(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fifth to two fifths of the contrast, around a random grey."""
    factor, grey = rng.uniform(0.2, 0.4), rng.uniform(60, 195)
    return (grey + factor * (image - 127.5)).clip(0, 255).round().astype(np.uint8)


def _upscale(glyph: np.ndarray) -> np.ndarray:
    """An 8x8 digit of values 0 to 16 as (32, 32, 3) uint8."""
    image = Image.fromarray((glyph * (255 / 16)).round().astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def _drawn(glyphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """COUNT random ones of these glyphs."""
    return glyphs[rng.integers(len(glyphs), size=COUNT)]


def _patches(photo: np.ndarray, glyphs: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Random square patches of a photo, 32 to 96 pixels wide, as 8x8 pixels with the grey values of a random glyph.

    The darkest pixel of a patch gets the darkest value of its glyph, and so on: mean and contrast are a digit's.
    """
    grey = Image.fromarray(photo).convert("L")
    patches = []
    for glyph in _drawn(glyphs, rng):
        width = int(rng.integers(32, 97))
        left, top = (int(rng.integers(size - width)) for size in grey.size)
        patch = np.asarray(grey.crop((left, top, left + width, top + width)).resize((8, 8), Image.Resampling.BOX))
        values = np.empty(64)
        values[np.argsort(patch, axis=None, kind="stable")] = np.sort(glyph, axis=None)
        patches.append(_upscale(values.reshape(8, 8)))
    return patches
