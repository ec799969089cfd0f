"""Images that are given one by one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openood_dream.datasets.given import find_given, image_files, open_images
from openood_dream.datasets.images import Transform
from openood_dream.errors import InputError

SMALL = Transform(8, 8)


def save(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(path)
    return path


def test_folders_are_looked_through(tmp_path):
    files = [save(tmp_path / name) for name in ("b.png", "in/a.JPG", "in/deep/c.png")]
    save(tmp_path / ".hidden" / "x.png")
    save(tmp_path / ".x.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert image_files(tmp_path) == files
    given = [files[0], str(files[1]), tmp_path / "in" / "deep"]
    assert [one.name for one in find_given(given)] == [str(one) for one in files]


@pytest.mark.parametrize(
    "images, words",
    [
        (torch.rand(2, 3, 8, 8) * 4 - 2, "floats from 0 to 1, not normalised"),
        (torch.full((3, 8, 8), float("nan")), "floats from 0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8 or of floats"),
        (torch.rand(8, 8), "got one of 8x8"),
        (torch.rand(2, 4, 8, 8), "got one of 2x4x8x8"),
        (torch.rand(2, 3, 0, 8), "got one of 2x3x0x8"),
        (np.zeros((8, 8, 3), np.uint8), "got ndarray"),
        (3, "got int"),
        ([None], "got NoneType"),
        ([], "there are none"),
        ("nowhere.png", r"nowhere\.png: no such file"),
        ("", "there are none|no such file"),
    ],
)
def test_what_is_no_image(images, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        find_given(images)


def test_odd_images_are_refused_one_by_one(tmp_path):
    good = save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    content = save(tmp_path / "big.png", (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    save(tmp_path / "line.png", (1, 60000))
    deep = Image.new("I", (8, 8))
    found = open_images(find_given([tmp_path, deep]), Transform(224, 224))
    assert found.names == [str(tmp_path / "big.png"), str(good)] and found.pixels.shape == (2, 3, 224, 224)
    for line, name in zip(found.refused, ["cut.png", "gone.png", "line.png", "pipe.png", "text.png", "image 7"]):
        assert name in line and len(line.splitlines()) == 1
    assert len(found.refused) == 6


def test_oddities_are_counted(tmp_path):
    clear = Image.new("RGBA", (8, 8), (1, 2, 3, 0))
    clear.save(tmp_path / "clear.png")
    clear.save(tmp_path / "too.png")
    assert list(open_images(find_given(tmp_path), SMALL).oddities.values()) == [2]
