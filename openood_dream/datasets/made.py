"""Images of the benchmarks that are made here: known by their sizes, and made again where one is missing or damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openood_dream.datasets.imglist import ImageRows, write_imglist
from openood_dream.errors import InputError, show
from openood_dream.store.artifacts import MANIFEST, complete
from openood_dream.store.files import remove_unfinished, settle, write_json

IMAGES, LISTS = "images_classic", "benchmark_imglist"  # the folders of OpenOOD's layout


def is_made(root: Path, name: str, seed: int) -> bool:
    """Whether a benchmark is there with all its images.

    Args:
        root: the folder that it is written into.
        name: the benchmark's.
        seed: of its random numbers.

    Raises:
        InputError: what is there is of another seed, or its manifest is damaged.
    """
    lists = root / LISTS / name
    manifest = complete(lists, {"seed": int, "bytes": dict, "lists": list})
    if manifest is None:
        return False
    if manifest["seed"] != seed:
        raise InputError(f"{root}: holds the {name} of seed {manifest['seed']}, not {seed}; choose another data_root")
    try:
        sizes = dict(_sizes(f"{root}/{IMAGES}/{name}", name))
        there = all(sizes.get(file) == size for file, size in manifest["bytes"].items())
        return there and all((lists / f"{one}.txt").stat().st_size for one in manifest["lists"])
    except OSError:
        return False
    except TypeError:
        raise InputError(
            f"{lists / MANIFEST}: lists: not what this program writes, {show(manifest['lists'])}; delete it "
            "and run again"
        ) from None


def _sizes(folder: str, name: str) -> Iterator[tuple[str, int]]:
    """The bytes of each file below a folder, by its name below `name`; a folder at a time, which is fast."""
    for entry in os.scandir(folder):
        below = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _sizes(entry.path, below)
        else:
            yield below, entry.stat().st_size


def write_images(root: Path, images: Iterable[tuple[str, np.ndarray]]) -> dict[str, int]:
    """Writes those images as PNG that are not there already.

    Args:
        root: the folder that the benchmark is written into.
        images: names below its folder of images, and uint8 (H, W, 3).

    Returns:
        The bytes of each.
    """
    sizes = {}
    for file, pixels in images:
        path, content = root / IMAGES / file, io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(content, "PNG")
        if not (path.is_file() and path.read_bytes() == content.getvalue()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())
        sizes[file] = len(content.getvalue())
    return sizes


def finish(root: Path, name: str, lists: dict[str, ImageRows], sizes: dict[str, int], **about: Any) -> None:
    """Writes the lists of a benchmark that are not there, since a user may have changed one, and then its manifest.

    Args:
        root: the folder that it is written into.
        name: the benchmark's.
        lists: (name, label) of the images of each list.
        sizes: the bytes of each image that was made, as `write_images` returned them.
        about: what the manifest says besides, `seed` among it.
    """
    place = root / LISTS / name
    for one, rows in lists.items():
        path = place / f"{one}.txt"
        if not (path.is_file() and path.stat().st_size):
            write_imglist(path, rows)
    remove_unfinished(place)
    settle(root / IMAGES / name)
    write_json(place / MANIFEST, {**about, "bytes": sizes, "lists": sorted(lists)})
