"""A user's own images: a folder per class, an image list or a CSV; and their division into splits that never overlap."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from openood_dream.datasets.imglist import check_inside
from openood_dream.errors import InputError
from openood_dream.store.files import hashes, read_text

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm", ".pgm"}
FILES, CLASSES = ("file", "path", "image", "filename"), ("class", "label", "class_name")  # columns of a CSV
LEAST = 5  # images of a class
VAL, TEST = 0.1, 0.2  # shares of each class; the rest is for training
REMEDY = (
    "expected a folder with a folder of images per class, a list of lines 'path class', or a CSV with file and class"
)


class Found(NamedTuple):
    """Images of a user: their names, relative to `root`, and the class of each; "" where they have none."""

    root: Path
    rows: list[tuple[str, str]]


class Splits(NamedTuple):
    """Images of a user, divided.

    Attributes:
        classes: the ID classes, in label order.
        held_out: the classes that are OOD.
        lists: (name, label) of the images of each list: train, val, test; and val_ood, near where classes are held out.
    """

    classes: list[str]
    held_out: list[str]
    lists: dict[str, list[tuple[str, int]]]


# -------------------------------------------------------------------------------------------------------- what is there


def find_images(source: Path, *, classes: bool = True) -> Found:
    """The images of a folder, an image list or a CSV, ordered by name.

    Args:
        source: the folder, whose class folders may have folders of their own; or the list or CSV, whose paths start from
            the folder that it lies in.
        classes: whether each image must have a class; without it a folder's images may lie anywhere in it.

    Raises:
        InputError: names what is missing or wrong.
    """
    if source.is_dir():
        rows = _in_folder(source, classes)
        if not rows:
            raise InputError(f"{source}: no images in {'class folders of ' if classes else ''}it; {REMEDY}")
        return Found(source, rows)
    try:
        text = read_text(source, REMEDY, 1 << 30)
    except FileNotFoundError:
        raise InputError(f"{source}: no such file or folder; {REMEDY}") from None
    rows = list(_of_csv(source, text) if source.suffix.lower() == ".csv" else _of_list(source, text))
    if not rows:
        raise InputError(f"{source}: names no images; {REMEDY}")
    return Found(source.parent, sorted(set(rows)))


def is_image(file: str | Path) -> bool:
    """Whether a file's name is that of an image, and not of a hidden file."""
    path = Path(file)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _in_folder(source: Path, classes: bool) -> list[tuple[str, str]]:
    rows = []
    for place, folders, names in os.walk(source, followlinks=True):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for name in filter(is_image, names):
            file = Path(place, name).relative_to(source)
            if len(file.parts) > 1:
                rows.append((_listable(file.as_posix(), source), file.parts[0].replace("_", " ")))
            elif classes:
                raise InputError(f"{source / name}: lies in no class folder; {REMEDY}")
            else:
                rows.append((_listable(name, source), ""))
    return sorted(rows)


def _listable(name: str, source: Path) -> str:
    if name != name.strip() or len(name.splitlines()) != 1:
        raise InputError(f"{source}: image {name!r} has a name that no list can hold; rename it")
    return name


def _of_list(source: Path, text: str) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        name, _, word = line.strip().rpartition(" ")
        if not name:
            raise InputError(f"{source}:{number}: expected 'path class', got {line.strip()!r}")
        rows.append((check_inside(name.strip(), f"{source}:{number}"), word.replace("_", " ")))
    return rows


def _of_csv(source: Path, text: str) -> list[tuple[str, str]]:
    lines = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    headers = {name.strip().lower(): name for name in lines.fieldnames or []}
    file, word = (next((headers[key] for key in keys if key in headers), None) for keys in (FILES, CLASSES))
    if file is None or word is None:
        raise InputError(f"{source}:1: expected columns file and class, got {', '.join(headers) or 'none'}")
    rows = []
    for row in lines:
        where = f"{source}:{lines.line_num}"
        if not row[file] or not row[word]:
            raise InputError(f"{where}: expected a file and a class, got {row[file]!r} and {row[word]!r}")
        name = _listable(row[file].strip(), source)
        rows.append((check_inside(name, where), row[word].strip().replace("_", " ")))
    return rows


def digests(found: Found) -> dict[str, str]:
    """The SHA-256 of each image, by its name.

    Args:
        found: the images.

    Raises:
        InputError: names an image that is not there or cannot be read.
    """
    names = [name for name, _ in found.rows]
    read = hashes([found.root / name for name in names], f"read {found.root}")
    for name, one in zip(names, read):
        if isinstance(one, OSError):
            raise InputError(
                f"{found.root / name}: cannot read this image ({one.strerror}); restore it or leave it out"
            )
    return {name: one for name, one in zip(names, read) if isinstance(one, str)}


# ------------------------------------------------------------------------------------------------------- how it is split


def split(found: Found, contents: Mapping[str, str], hold_out: float) -> Splits:
    """Divides the images of each class into training, validation and test; the same images always in the same way.

    The order is that of the images' contents, so that it depends on no name, and copies of an image are left out. Of the
    classes that are held out, a quarter is for validation; a single one is divided itself.

    Args:
        found: the images, each with its class.
        contents: the SHA-256 of each, by its name.
        hold_out: the share of the classes that are OOD; at least one, unless it is 0.

    Raises:
        InputError: there are too few classes, or a class has too few images.
    """
    by_class = _without_copies(found, contents)
    for name, files in by_class.items():
        if len(files) < LEAST:
            raise InputError(
                f"{found.root}: class {name!r} has {len(files)} different images; expected at least {LEAST}, or leave it out"
            )
    held = _held_out(list(by_class), hold_out, found.root)
    classes = [name for name in by_class if name not in held]
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        files = by_class[name]
        val, test = _count(VAL, files), _count(TEST, files)
        parts = {"val": files[:val], "test": files[val : val + test], "train": files[val + test :]}
        for part, some in parts.items():
            lists[part] += [(file, label) for file in some]
    if held:
        lists |= _ood_lists([by_class[name] for name in held])
    return Splits(classes, held, {name: sorted(rows) for name, rows in lists.items()})


def split_ood(
    found: Found, contents: Mapping[str, str], others: Sequence[str], *, validate: bool
) -> dict[str, list[tuple[str, int]]]:
    """Divides OOD images: a fifth for validation, val_ood, and the rest for the test, ood.

    Args:
        found: the images.
        contents: the SHA-256 of each, by its name.
        others: those of the ID images, which are left out.
        validate: whether validation images are wanted; else all are for the test.

    Raises:
        InputError: too few are left.
    """
    known = set(others)
    files = [file for file in _in_order([name for name, _ in found.rows], contents) if contents[file] not in known]
    if len(files) < LEAST:
        raise InputError(f"{found.root}: {len(files)} images that are not among --data; expected at least {LEAST}")
    if not validate:
        return {"ood": [(file, -1) for file in sorted(files)]}
    lists = _ood_lists([files])
    return {"val_ood": sorted(lists["val_ood"]), "ood": sorted(lists["near"])}


def _without_copies(found: Found, contents: Mapping[str, str]) -> dict[str, list[str]]:
    """The files of each class, classes by name and files by content; of equal files only the first by name."""
    first: dict[str, tuple[str, str]] = {}
    for name, word in found.rows:
        known = first.setdefault(contents[name], (name, word))
        if known[1] != word:
            raise InputError(
                f"{found.root}: {known[0]} and {name} are the same image in classes {known[1]!r} and {word!r}; "
                "remove the wrong one"
            )
    by_class: dict[str, list[str]] = {word: [] for word in sorted({word for _, word in first.values()}, key=_natural)}
    for _, (name, word) in sorted(first.items()):  # by content
        by_class[word].append(name)
    return by_class


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """What orders names as people do: class 2 before class 10."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)


def _in_order(names: Sequence[str], contents: Mapping[str, str]) -> list[str]:
    """One file of each content, in the order of the contents."""
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(contents[name], name)
    return [first[content] for content in sorted(first)]


def _held_out(names: list[str], share: float, root: Path) -> list[str]:
    if not share or len(names) < 3:
        return []
    count = max(1, round(share * len(names)))
    if len(names) - count < 2:
        raise InputError(
            f"--hold-out: {share:g} leaves {len(names) - count} of the {len(names)} classes of {root}; lower it"
        )
    chosen = sorted(names, key=lambda name: sha256(name.encode()).hexdigest())[:count]
    return [name for name in names if name in chosen]


def _ood_lists(groups: list[list[str]]) -> dict[str, list[tuple[str, int]]]:
    """OOD files for validation and for the test, by class where there are several."""
    if len(groups) == 1:
        cut = _count(TEST, groups[0])
        val, test = groups[0][:cut], groups[0][cut:]
    else:
        cut = max(1, len(groups) // 4)
        val, test = sum(groups[:cut], []), sum(groups[cut:], [])
    return {"val_ood": [(file, -1) for file in val], "near": [(file, -1) for file in test]}


def _count(share: float, files: Sequence[str]) -> int:
    return max(1, round(share * len(files)))
