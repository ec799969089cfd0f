"""Images that stand in two lists, or with two labels in one: what a table's numbers should not be made of."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator

from openood_dream.datasets.images import ImageList
from openood_dream.datasets.loaders import Data
from openood_dream.store.files import remembered, sha256


class _Files:
    """The files of a list, each looked at once.

    Args:
        name: the config key of the list.
        images: the list.
    """

    def __init__(self, name: str, images: ImageList) -> None:
        self.name, self.imglist = name, images.imglist
        self.labels: dict[str, set[int]] = defaultdict(set)  # by path
        for file, label in images.rows:
            self.labels[os.path.realpath(images.data_dir / file)].add(label)
        self.sizes = {path: os.path.getsize(path) for path in self.labels}


def overlaps(data: Data) -> list[str]:
    """What is doubtful about the lists of a config taken together, a line each, with counts.

    Images are the same if their files are; only files of equal size are read.

    Args:
        data: the lists; those that a config lacks are left out.

    Raises:
        InputError: a list cannot be read.
    """
    id_sets = [
        _Files(f"dataset.{name}", data.images("dataset", name))
        for name in ("train", "val", "test")
        if getattr(data.dataset, name) is not None
    ]
    ood_sets = list(_ood(data)) if data.ood is not None else []
    found = [line for one in [*id_sets, *ood_sets] for line in _two_labels(one)]
    for index, one in enumerate(id_sets):
        for other in [*id_sets[index + 1 :], *ood_sets]:
            if not (one.name == "dataset.val" and other.name == "ood_dataset.val"):
                found += _shared(one, other)
    return found


def _ood(data: Data) -> Iterator[_Files]:
    """The OOD lists; covariate-shifted sets are made of ID images, so what they share with these is no fault."""
    assert data.ood is not None  # noqa: S101 # nosec B101 (asked before)
    if data.ood.val is not None:
        yield _Files("ood_dataset.val", data.images("ood_dataset", "val"))
    for group, name in data.ood_sets() if data.ood.groups else []:
        yield _Files(f"ood_dataset.{group}.{name}", data.images("ood_dataset", group, name))


def _two_labels(one: _Files) -> Iterator[str]:
    by_size, by_content = Counter(one.sizes.values()), defaultdict[str, set[int]](set)
    for path, size in one.sizes.items():
        if by_size[size] > 1:
            by_content[_digest(path)] |= one.labels[path]
    count = sum(len(found) > 1 for found in [*one.labels.values(), *by_content.values()])
    if count:
        yield f"{one.name}: {count} images stand in {one.imglist} with two labels; take one of each out"


def _shared(one: _Files, other: _Files) -> Iterator[str]:
    sizes = set(one.sizes.values())
    alike = {path: size for path, size in other.sizes.items() if path not in one.sizes and size in sizes}
    wanted = set(alike.values())
    digests = {_digest(path) for path, size in one.sizes.items() if size in wanted}
    count = len(one.sizes.keys() & other.sizes.keys()) + sum(_digest(path) in digests for path in alike)
    if count:
        yield f"{other.name}: {count} images are also in {one.name} ({one.imglist}); take them out of one of the lists"


def _digest(path: str) -> str:
    return remembered(("digest", path), lambda: sha256(path))
