"""The benchmark of likelihoods: what a generative model of CIFAR-10 is asked to tell from CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openood_dream.datasets.imglist import read_imglist
from openood_dream.datasets.made import finish, is_made, write_images
from openood_dream.store.artifacts import exclusive

REAL = Path("data/benchmark_imglist/cifar10")  # where OpenOOD's configs expect the lists
REAL_SETS = ("test_cifar10", "test_tin", "test_mnist", "test_texture")


def make_frl_cifar10(root: str | Path, seed: int = 0, count: int = 300) -> None:
    """Writes what the benchmark of likelihoods needs besides real images; the same for the same seed.

    What is there already stays; an image that is missing or damaged is made again.

    Uniform noise and images of one constant colour, 32x32 RGB PNG, and lists of `count` images: those, and evenly
    spaced ones of OpenOOD's CIFAR-10 test and OOD lists.

    Args:
        root: the folder that holds the benchmark, in OpenOOD's layout.
        seed: of the random numbers.
        count: images of each set.

    Raises:
        InputError: a list of real images is not there, or the root holds images of another seed.
    """
    root = Path(root)
    if is_made(root, "frl_cifar10", seed):
        return
    sets = {name: read_imglist(REAL / f"{name}.txt", "dataset.make") for name in REAL_SETS}
    with exclusive(root):
        if is_made(root, "frl_cifar10", seed):  # by another process, while this one waited
            return
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        colours = rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(32, axis=1).repeat(32, axis=2)
        sizes = dict[str, int]()
        for name, images in {"noise": noise, "constant": colours}.items():
            sets[name] = [(f"frl_cifar10/{name}/{number:04d}.png", -1) for number in range(count)]
            sizes |= write_images(root, zip((file for file, _ in sets[name]), images))
        chosen = {name: np.linspace(0, len(rows) - 1, min(count, len(rows))).round() for name, rows in sets.items()}
        lists = {name: [sets[name][int(i)] for i in numbers] for name, numbers in chosen.items()}
        finish(root, "frl_cifar10", lists, sizes, seed=seed, count=count)
