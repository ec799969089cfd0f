"""Reading image files: the formats that are read, what is refused, and what is odd about an image."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from openood_dream.errors import InputError
from openood_dream.store.artifacts import MANIFEST

# Pillow starts other programs for some of the formats that it knows, so only these are read
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
# How files begin that are often met where images are expected
OTHERS = {
    b"%!PS": "PostScript (EPS)",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "SVG or XML",
    b"8BPS": "Photoshop",
}
BITS_PER_SAMPLE, ORIENTATION = 258, 274  # tags of TIFF and EXIF
ROTATED = "a rotation in EXIF, which is not applied"
HIDDEN = "transparent parts, whose hidden colours are shown"


def read_image(path: Path, remedy: str = "restore it", oddities: Counter[str] | None = None) -> Image.Image:
    """Decodes an image.

    Args:
        path: the image.
        remedy: what to do where it is broken and was not drawn here.
        oddities: counts what is odd about images that are read all the same: ROTATED, HIDDEN.

    Returns:
        The image in RGB.

    Raises:
        InputError: it is missing or broken, no regular file, of another format or of more than 8 bits; names it and the
            remedy.
    """
    try:
        content = _content(path)
        with strict(), Image.open(io.BytesIO(content), formats=_formats()) as image:
            _check_depth(image, content)
            if oddities is not None:
                oddities.update(_oddities(image))
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        what = str(error)
        if isinstance(error, UnidentifiedImageError):  # whose text is an address in memory
            what = f"it is {_kind(content)}, none of {', '.join(FORMATS)}"
        image_set = path.parent.parent
        if (image_set / MANIFEST).exists():
            remedy = f"openood-dream verify {image_set} says how to repair it"
        raise InputError(f"{path}: broken image ({what}); {remedy}") from None


def _content(path: Path) -> bytes:
    """The bytes of a regular file; others, such as a pipe, would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    return path.read_bytes()


def _formats() -> list[str]:
    """The formats among FORMATS that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _kind(content: bytes) -> str:
    """What the bytes of a file look like."""
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "HEIC"
    if not content:
        return "empty"
    start = content.lstrip()
    return next((name for begin, name in OTHERS.items() if start.startswith(begin)), "of a format that is not known")


def _check_depth(image: Image.Image, content: bytes) -> None:
    """Raises ValueError for an image of which Pillow would keep 8 of more bits a channel."""
    bits = content[24] if image.format == "PNG" else 8
    if image.format == "TIFF":
        found = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 8)
        bits = max(found) if isinstance(found, tuple) else found
    if bits > 8 or image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode {image.mode} has more than 8 bits a channel, save it with 8")


def _oddities(image: Image.Image) -> Iterator[str]:
    if image.getexif().get(ORIENTATION, 1) != 1:
        yield ROTATED
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if isinstance(lowest, int) and lowest < 255:
            yield HIDDEN


@contextmanager
def strict() -> Iterator[None]:
    """Pillow refuses truncated images within the block; OpenOOD, once imported, lets them pass as half grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """What is left of an RGB image that was stored as JPEG.

    Args:
        image: the image.
        quality: 1 to 100.
    """
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored, formats=["JPEG"]).convert("RGB")
