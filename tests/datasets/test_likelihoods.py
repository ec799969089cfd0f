"""The benchmark of likelihoods: noise, constant images, and evenly spaced real ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from openood_dream.datasets import likelihoods
from openood_dream.datasets.builtin import ensure
from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.errors import InputError


def test_lists_hold_noise_constants_and_real_images(tmp_path, monkeypatch):
    monkeypatch.setattr(likelihoods, "REAL", tmp_path / "real")
    for name in likelihoods.REAL_SETS:
        write_imglist(tmp_path / "real" / f"{name}.txt", [(f"{name}/{i}.png", i) for i in range(9)])
    root = tmp_path / "out"
    likelihoods.make_frl_cifar10(root, count=5)
    lists = root / "benchmark_imglist" / "frl_cifar10"
    assert read_imglist(lists / "test_tin.txt") == [(f"test_tin/{i}.png", i) for i in range(0, 9, 2)]
    spread = {}
    for name in ("noise", "constant"):
        found = [
            np.asarray(Image.open(root / "images_classic" / file)) for file, _ in read_imglist(lists / f"{name}.txt")
        ]
        assert {image.shape for image in found} == {(32, 32, 3)} and len(found) == 5
        spread[name] = [image.std((0, 1)).max() for image in found]
    assert max(spread["constant"]) == 0 and min(spread["noise"]) > 60
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ensure("frl_cifar10", root)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_missing_real_lists_are_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(likelihoods, "REAL", tmp_path / "real")
    with pytest.raises(InputError, match=r"test_cifar10\.txt: .*dataset\.make"):
        likelihoods.make_frl_cifar10(tmp_path / "out")
    assert not (tmp_path / "out").exists()
