"""Lists of pairs: each kept outlier is followed by the partner that the set's table names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.dream.pairs import make_pairs
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact, build

FILES = ["a/0.png", "b/1.png", "a/2.png", "b/3.png"]  # two outliers, then their partners


def artifact(root: Path, stage: str, kept: list[int], **columns: list) -> Artifact:
    def make(folder: Path) -> dict:
        table = {"file": FILES, "label": [-1, -1, 0, 1], "sha256": FILES, "class": [0, 1, 0, 1]}
        table |= {"embedding": range(4), "seed": range(4), "distance": [1.0] * 4, **columns}
        pd.DataFrame(table).to_parquet(folder / "images.parquet")
        write_imglist(folder / "imglist.txt", [(FILES[i], -1 if i < 2 else i - 2) for i in kept])
        return {"description": "imagined (knn)"}

    return build(root, stage, {"kept": kept, **columns}, make)


def test_outliers_are_followed_by_their_partners(tmp_path):
    images = artifact(tmp_path, "images", [0, 1, 2, 3], partner=["a/2.png", "b/3.png", "", ""])
    made = make_pairs(images, images, tmp_path)
    assert read_imglist(made.path / "imglist.txt") == [(FILES[0], -1), (FILES[2], 0), (FILES[1], -1), (FILES[3], 1)]
    left = artifact(tmp_path, "quality", [1], partner=[""] * 4)
    found = make_pairs(images, left, tmp_path)
    assert read_imglist(found.path / "imglist.txt") == [(FILES[1], -1), (FILES[3], 1)]
    assert found.hash != made.hash and found.manifest["pairs"] == 1


def test_set_without_pairs(tmp_path):
    images = artifact(tmp_path, "images", [0, 1])
    with pytest.raises(InputError, match=r"images\.parquet: no column 'partner'.*trainer\.pairs"):
        make_pairs(images, images, tmp_path)
