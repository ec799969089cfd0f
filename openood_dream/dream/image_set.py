"""Image sets on disk: shards that any worker may draw in any order, then joined to one table and one image list.

A set's folder holds `<class>/<number>.png`, `shards/<number>.parquet` with a row per image of a shard, and, once all
shards are there, `images.parquet` and `imglist.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.errors import InputError
from openood_dream.store.artifacts import MANIFEST, complete
from openood_dream.store.files import hashes, remove_unfinished
from openood_dream.store.tables import read_table, write_table


def shards(total: int, size: int) -> list[range]:
    """The image numbers of each shard.

    Args:
        total: how many images the set has.
        size: how many a shard has; the last one may have fewer.

    Returns:
        A range for each shard, in order.
    """
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def missing_shards(folder: Path, wanted: Sequence[range]) -> list[int]:
    """The numbers of the shards that have no table yet.

    Args:
        folder: the set's folder.
        wanted: the shards of the whole set.

    Returns:
        Numbers in ascending order.
    """
    return [number for number in range(len(wanted)) if not shard_table(folder, number).exists()]


def shard_table(folder: Path, number: int) -> Path:
    """Where a shard's table lies; written after the shard's images, so that no partial image is ever listed.

    Args:
        folder: the set's folder.
        number: the shard's number.

    Returns:
        The path of a parquet file.
    """
    return folder / "shards" / f"{number:06d}.parquet"


def write_image(path: Path, content: bytes) -> None:
    """Writes an image of a shard. It is on the disk before this returns, hence before any table lists it.

    Args:
        path: the file, in a folder that is made where it is not there.
        content: its bytes.
    """
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_images(folder: Path) -> pd.DataFrame:
    """The table of a finished image set; InputError where it is missing or damaged."""
    return read_table(folder / "images.parquet", f"openood-dream verify {folder} says how to repair it")


def join_shards(folder: Path, count: int) -> pd.DataFrame:
    """Joins the shards' tables to `images.parquet` and `imglist.txt` (file, label).

    Args:
        folder: the set's folder.
        count: how many shards it has.

    Returns:
        The joined table.

    Raises:
        InputError: a shard's table is missing or damaged.
    """
    remove_unfinished(folder / "shards")
    numbers = tqdm(range(count), desc="imagine: joining tables", unit="shard", delay=1)
    tables = [read_table(shard_table(folder, number), "delete it and run again") for number in numbers]
    table = pd.concat(tables, ignore_index=True)
    write_table(folder / "images.parquet", table)
    write_imglist(folder / "imglist.txt", zip(table["file"], table["label"], strict=True))
    return table


def verify(folder: Path) -> tuple[int, dict[str, str], list[Path]]:
    """Compares a finished image set with its table: the images' sha256, what is missing, and what is not listed.

    Args:
        folder: the set's folder.

    Returns:
        How many images are listed; what is wrong, file -> problem; and the files to delete so that the next run draws
        the shards of these images again, and nothing else.

    Raises:
        InputError: the folder is no finished image set, or its table cannot be read.
    """
    manifest = complete(folder)
    if manifest is None or manifest.get("stage") != "images":
        raise InputError(f"{folder}: no finished image set; expected a folder images-* that imagine has finished")
    remedy = f"delete {folder / MANIFEST} and run the same imagine again, which joins the shards' tables anew"
    table = read_table(folder / "images.parquet", remedy)
    problems, delete = _altered(folder, table, manifest["inputs"]["synthesis"]["shard_size"])
    for file in _unlisted(folder, set(table["file"])):
        problems[file] = "not in images.parquet"
        delete.add(folder / file)
    rows = None
    with suppress(InputError):
        rows = read_imglist(folder / "imglist.txt")
    if rows != list(zip(table["file"], table["label"])):
        problems["imglist.txt"] = "not the files and labels of images.parquet"
    return len(table), problems, [folder / MANIFEST, *sorted(delete)]


def _altered(folder: Path, table: pd.DataFrame, shard_size: int) -> tuple[dict[str, str], set[Path]]:
    """The images that are not what the table says, file -> problem, and the tables of their shards."""
    problems, tables = {}, set()
    found = hashes([folder / file for file in table["file"]], "verify: reading images")
    for file, expected, digest in zip(table["file"], table["sha256"], found, strict=True):
        if digest == expected:
            continue
        shard = int(Path(file).stem) // shard_size
        what = (digest.strerror or "unreadable").lower() if isinstance(digest, OSError) else "altered"
        problems[file] = f"{what} (shard {shard})"
        tables.add(shard_table(folder, shard))
    return problems, tables


def _unlisted(folder: Path, listed: set[str]) -> list[str]:
    """The files in the folders of the classes that are not `listed`."""
    found = []
    for place, _, names in os.walk(folder):
        part = Path(place).relative_to(folder)
        if part.parts and part.parts[0] != "shards":
            found += sorted(file for name in names if (file := f"{part.as_posix()}/{name}") not in listed)
    return found
