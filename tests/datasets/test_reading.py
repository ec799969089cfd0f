"""Which image files are read, what is refused, and what is counted as odd."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openood_dream.datasets.imglist import read_imglist
from openood_dream.datasets.reading import HIDDEN, ROTATED, read_image
from openood_dream.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(form: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, form, **options)
    return buffer.getvalue()


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + os.urandom(4 * channels * 2) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_formats_that_are_read(tmp_path, form):
    (tmp_path / "a.png").write_bytes(encoded(form))
    assert read_image(tmp_path / "a.png").size == (8, 8)


@pytest.mark.parametrize(
    "content, words",
    [
        (encoded("EPS"), "PostScript"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIC"),
        (b"", "empty"),
        (b"hello", "not known"),
        (encoded("PCX"), "not known"),
    ],
)
def test_other_formats_are_named(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/x.png: broken image \(it is [^<]*{words}") as caught:
        read_image(tmp_path / "x.png")
    assert "0x" not in str(caught.value)


def test_nothing_is_started_for_an_eps(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("started a program"))
    (tmp_path / "x.png").write_bytes(encoded("EPS"))
    with pytest.raises(InputError):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_is_refused(tmp_path, colour_type, channels):
    (tmp_path / "deep.png").write_bytes(deep_png(colour_type, channels))
    with pytest.raises(InputError, match="deep.png: .*more than 8 bits a channel"):
        read_image(tmp_path / "deep.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: .*no regular file"):
        read_image(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: .*no regular file"):
        read_imglist(tmp_path / "pipe")


def odd(path: Path) -> Counter[str]:
    found = Counter[str]()
    read_image(path, oddities=found)
    return found


def test_rotation_and_hidden_colours_are_counted(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "turned.jpg").write_bytes(encoded("JPEG", exif=exif))
    alpha = Image.fromarray(PIXELS).convert("RGBA")
    (tmp_path / "opaque.png").write_bytes(encoded("PNG", alpha))
    alpha.putpixel((0, 0), (255, 0, 0, 0))
    (tmp_path / "hidden.png").write_bytes(encoded("PNG", alpha))
    (tmp_path / "plain.jpg").write_bytes(encoded("JPEG"))
    found = {name: odd(tmp_path / name) for name in ("turned.jpg", "opaque.png", "hidden.png", "plain.jpg")}
    assert found == {"turned.jpg": {ROTATED: 1}, "opaque.png": {}, "hidden.png": {HIDDEN: 1}, "plain.jpg": {}}
