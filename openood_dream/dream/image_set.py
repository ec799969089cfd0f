"""Image sets on disk: shards that any worker may draw in any order, then joined to one table and one image list.

A set's folder holds `<class>/<number>.png`, `shards/<number>.parquet` with a row per image of a shard, and, once all
shards are there, `images.parquet` and `imglist.txt`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from openood_dream.config.tree import lookup
from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.errors import InputError, show
from openood_dream.store.artifacts import MANIFEST, complete, completed
from openood_dream.store.files import hashes, remove_unfinished, sync_folder
from openood_dream.store.tables import INTEGERS, NUMBERS, TEXTS, read_table, write_table

SYNCS = 32  # folders that are brought to the disk at a time, which a disk does in hardly more time than one
IMAGES = {  # columns of images.parquet, and of a shard's table
    "file": TEXTS,
    "label": INTEGERS,
    "sha256": TEXTS,
    "class": INTEGERS,
    "embedding": INTEGERS,
    "seed": INTEGERS,
    "distance": NUMBERS,
}
PARTNER = "partner"  # column of sets that start from ID images: the file of the pair's other image, or ""


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


def write_shard(folder: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table of a shard whose images are all written, once their names are on the disk too.

    Args:
        folder: the set's folder.
        number: the shard's number.
        rows: a row for each image, with IMAGES among its keys.
    """
    places = {os.path.dirname(os.path.join(folder, row["file"])) for row in rows}
    with ThreadPoolExecutor(min(SYNCS, 1 + len(places))) as pool:
        deque(pool.map(sync_folder, [*places, folder]), maxlen=0)  # raises the first error
    write_table(shard_table(folder, number), pd.DataFrame(rows))


def listed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a set's table that its list has: all but the inliers of pairs, for which `dream.pairs` makes lists."""
    if PARTNER not in table:
        return table
    return table[(table[PARTNER] == "") | (table["label"] < 0)].reset_index(drop=True)


def read_images(folder: Path) -> pd.DataFrame:
    """The table of a finished image set; InputError where it is missing or damaged."""
    return read_table(folder / "images.parquet", IMAGES, f"openood-dream verify {folder} says how to repair it")


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
    tables = [read_table(shard_table(folder, number), IMAGES, "delete it and run again") for number in numbers]
    table = pd.concat(tables, ignore_index=True)
    write_table(folder / "images.parquet", table)
    rows = listed(table)
    write_imglist(folder / "imglist.txt", zip(rows["file"].tolist(), rows["label"].tolist(), strict=True))
    return table


def verify(folder: Path) -> tuple[int, dict[str, str], list[Path]]:
    """Compares a finished image set with its table: the images' sha256, what is missing, and what is not listed.

    Nothing outside the folder is read: a link in it is a problem.

    Args:
        folder: the set's folder.

    Returns:
        How many images are listed; what is wrong, file -> problem; and the files to delete so that the next run draws
        the shards of these images again, and nothing else.

    Raises:
        InputError: the folder is no finished image set, or its manifest or its table is damaged.
    """
    remedy = f"delete {folder / MANIFEST} and run the same imagine again, which joins the shards' tables anew"
    if (complete(folder, remedy=remedy) or {}).get("stage") != "images":
        raise InputError(f"{folder}: no finished image set; expected a folder images-* that imagine has finished")
    manifest = completed(folder, remedy=remedy) or {}
    table = read_table(folder / "images.parquet", IMAGES, remedy)
    size = lookup(manifest, ("inputs", "synthesis", "shard_size"))
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{folder / MANIFEST}: inputs: not those of an image set; {remedy}")
    parts = shards(
        len(table), size * (len(table) // max(1, len(listed(table))))
    )  # a pair's two images are in one shard
    problems, delete = _altered(folder, table, parts)
    own = {MANIFEST, "images.parquet", "imglist.txt", *table["file"]}
    own |= {shard_table(folder, number).relative_to(folder).as_posix() for number in range(len(parts))}
    for file in _strangers(folder, own):
        problems[file] = "a link" if (folder / file).is_symlink() else "not in images.parquet"
        delete.add(folder / file)
    rows = None
    with suppress(InputError):
        rows = read_imglist(folder / "imglist.txt")
    named = listed(table)
    if rows != list(zip(named["file"].tolist(), named["label"].tolist())):
        problems["imglist.txt"] = "not the files and labels of images.parquet"
    if manifest.get("images") != len(table):
        problems[MANIFEST] = f"{show(manifest.get('images'))} images, not the {len(table)} of images.parquet"
    return len(table), problems, [folder / MANIFEST, *sorted(delete)]


def _altered(folder: Path, table: pd.DataFrame, parts: Sequence[range]) -> tuple[dict[str, str], set[Path]]:
    """What of the shards is not what the set's table says, file -> problem, and the tables of these shards."""
    problems, tables = {}, set()
    files = [folder / file for file in table["file"]]
    whole = cache(partial(_inside, folder))  # a folder is looked at once, not for each of its files
    inside = [whole(file.parent) and file.name != ".." and not os.path.islink(file) for file in files]
    found = iter(hashes([file for file, there in zip(files, inside) if there], "verify: reading images"))
    digests = [next(found) if there else OSError(0, "behind a link") for there in inside]
    for number, rows in enumerate(parts):
        path = shard_table(folder, number)
        shard = table.iloc[rows.start : rows.stop].reset_index(drop=True)
        for file, expected, digest in zip(shard["file"], shard["sha256"], digests[rows.start : rows.stop]):
            if digest == expected:
                continue
            what = (digest.strerror or "unreadable").lower() if isinstance(digest, OSError) else "altered"
            problems[file] = f"{what} (shard {number})"
            tables.add(path)
        own = None
        with suppress(InputError):
            own = read_table(path, IMAGES) if _inside(folder, path) else None
        if own is None or not own.equals(shard):
            problems[path.relative_to(folder).as_posix()] = "not the rows of images.parquet"
            tables.add(path)
    return problems, tables


def _inside(folder: Path, file: Path) -> bool:
    """Whether a file lies in a folder, or is that folder, without links on the way and at the end."""
    if not file.is_relative_to(folder):
        return False
    return os.path.realpath(file) == os.fspath(Path(os.path.realpath(folder), file.relative_to(folder)))


def _strangers(folder: Path, own: Collection[str]) -> list[str]:
    """The files, and links of any kind, in a set's folder that are not its `own`, in order."""
    found, places = [], [""]
    for place in places:  # which grows
        with suppress(OSError), os.scandir(folder / place) as entries:
            for entry in entries:
                file, link = place + entry.name, entry.is_symlink()
                if entry.is_dir(follow_symlinks=False):
                    places.append(f"{file}/")
                elif link or file not in own:
                    found.append(file)
    return sorted(found)
