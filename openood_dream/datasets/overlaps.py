"""Images that stand in two lists, or with two labels in one: what a table's numbers should not be made of."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from openood_dream.datasets.images import ImageList
from openood_dream.datasets.loaders import Data
from openood_dream.store.files import remembered, sha256

Named = tuple[str, ImageList]
SAME = "the same image"


def overlaps(data: Data) -> list[str]:
    """What is doubtful about the lists of a config taken together, a line each, with counts.

    Images are the same if their files are; only files of equal size are read.

    Args:
        data: the lists; those that a config lacks are left out.

    Raises:
        InputError: a list cannot be read.
    """
    id_sets = [
        (f"dataset.{name}", data.images("dataset", name)) for name in ("train", "val", "test") if _has(data, name)
    ]
    ood_sets = list(_ood(data)) if data.ood is not None else []
    found = [line for name, images in [*id_sets, *ood_sets] for line in _two_labels(name, images)]
    for index, (name, images) in enumerate(id_sets):
        for other, theirs in [*id_sets[index + 1 :], *ood_sets]:
            if not (name == "dataset.val" and other == "ood_dataset.val"):
                found += _shared(name, images, other, theirs)
    return found


def _has(data: Data, name: str) -> bool:
    return getattr(data.dataset, name) is not None


def _ood(data: Data) -> Iterator[Named]:
    """The OOD lists; covariate-shifted sets are made of ID images, so what they share with these is no fault."""
    assert data.ood is not None  # noqa: S101 # nosec B101 (asked before)
    if data.ood.val is not None:
        yield "ood_dataset.val", data.images("ood_dataset", "val")
    for group, of in data.ood.groups.items():
        for name in of.datasets:
            yield f"ood_dataset.{group}.{name}", data.images("ood_dataset", group, name)


def _two_labels(name: str, images: ImageList) -> Iterator[str]:
    labels: dict[str, set[int]] = defaultdict(set)
    for path, (_, label) in zip(_paths(images), images.rows):
        labels[path].add(label)
    by_content: dict[str, set[int]] = defaultdict(set)
    for path in _of_shared_size(list(labels)):
        by_content[_digest(path)] |= labels[path]
    count = sum(len(found) > 1 for found in [*labels.values(), *by_content.values()])
    if count:
        yield f"{name}: {count} images stand in {images.imglist} with two labels; take one of each out"


def _shared(name: str, images: ImageList, other: str, theirs: ImageList) -> Iterator[str]:
    mine, other_paths = set(_paths(images)), set(_paths(theirs))
    sizes = {os.path.getsize(path) for path in mine}
    alike = [path for path in other_paths - mine if os.path.getsize(path) in sizes]
    wanted = {os.path.getsize(path) for path in alike}
    digests = {_digest(path) for path in mine if os.path.getsize(path) in wanted} if alike else set()
    count = len(mine & other_paths) + sum(_digest(path) in digests for path in alike)
    if count:
        yield f"{other}: {count} images are also in {name} ({images.imglist}); take them out of one of the lists"


def _of_shared_size(paths: Sequence[str]) -> list[str]:
    """The paths of files that are as large as another one."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        by_size[os.path.getsize(path)].append(path)
    return [path for group in by_size.values() if len(group) > 1 for path in group]


def _paths(images: ImageList) -> list[str]:
    return [os.path.realpath(images.data_dir / name) for name, _ in images.rows]


def _digest(path: str) -> str:
    return remembered(("digest", path), lambda: sha256(path))
