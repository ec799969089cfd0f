"""Images and image lists with random bytes changed: they are read, or one line names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.datasets.reading import read_image
from openood_dream.errors import InputError

FILES = ["a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.bmp", "list.txt"]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=4)


def fuzz(name: str, folder: Path, edits: list[tuple[float, bytes, int]]) -> None:
    """Overwrites, inserts and cuts bytes of a good file, and reads it."""
    path = folder / name
    if path.suffix == ".txt":
        write_imglist(path, [(f"sea horse/{number}.png", number) for number in range(9)])
    else:
        Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    content = bytearray(path.read_bytes())
    for place, new, gone in edits:
        at = int(place * len(content))
        content[at : at + gone] = new
    path.write_bytes(content)
    try:
        assert read_imglist(path) if path.suffix == ".txt" else read_image(path).mode == "RGB"
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_fuzz(name, tmp_path, edits):
    fuzz(name, tmp_path, edits)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_long_fuzz(name, tmp_path, edits):
    fuzz(name, tmp_path, edits)
