"""Images that are given one by one, and in no list: files, folders, Pillow's images, tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from openood_dream.datasets.folders import is_image
from openood_dream.datasets.images import Transform
from openood_dream.datasets.reading import read_image, strict
from openood_dream.errors import InputError

EXPECTED = "expected a tensor, a Pillow image, a path, or a list of these"
MOST_PIXELS = 1 << 26  # of an image once it is resized; a line of pixels would become a wide one


class Given(NamedTuple):
    """An image, and what it is called: its path, or its number among all that were given."""

    name: str
    image: Path | Image.Image | torch.Tensor


class Opened(NamedTuple):
    """What became of some images.

    Attributes:
        names: of those that could be read.
        pixels: of these, resized and cropped, uint8 (N, 3, S, S).
        refused: a line about each of the others.
        oddities: counts what is odd about images that were read all the same.
    """

    names: list[str]
    pixels: torch.Tensor
    refused: list[str]
    oddities: Counter[str]


# ------------------------------------------------------------------------------------------------------- what is given


def find_given(images: Any) -> list[Given]:
    """The images that a person means.

    Args:
        images: a tensor of one image (3, H, W) or several (N, 3, H, W), of uint8 or of floats from 0 to 1, with 1 channel
            for grey ones; a Pillow image; the path of a file, or of a folder with images anywhere in it; or several of these.

    Raises:
        InputError: something else was given, a path is not there, or there are no images.
    """
    found = list(_each(images))
    if not found:
        raise InputError("images: there are none; expected files, or folders with images in them")
    return [Given(one.name or str(number), one.image) for number, one in enumerate(found)]


def _each(images: Any) -> Iterator[Given]:
    if isinstance(images, (str, os.PathLike)):
        yield from (Given(str(path), path) for path in image_files(Path(images)))
    elif isinstance(images, Image.Image):
        yield Given("", images)
    elif isinstance(images, torch.Tensor):
        yield from (Given("", image) for image in _checked(images))
    elif isinstance(images, Iterable) and not hasattr(images, "__array__"):
        for one in images:
            yield from _each(one)
    else:
        raise InputError(f"images: {EXPECTED}, got {type(images).__name__}")


def image_files(path: Path) -> list[Path]:
    """A file, or the images anywhere in a folder, by name; links to folders are followed, hidden files are left out.

    Args:
        path: a file of any name, or a folder.

    Raises:
        InputError: it is not there, or a folder cannot be read.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file or folder; expected images")
    if not path.is_dir():
        return [path]

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); make it readable, or leave it out")

    found, seen = list[Path](), {os.path.realpath(path)}
    for place, folders, names in os.walk(path, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name in real if real[name] not in seen]  # a link may lead back up
        seen.update(real.values())
        found += [Path(place, name) for name in names if is_image(name)]
    return sorted(found)


def _checked(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """The images of a tensor, uint8 (3, H, W) each."""
    batch = images.detach().cpu() if images.dim() == 4 else images.detach().cpu()[None]
    if batch.dim() != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape[2:]:
        shape = "x".join(map(str, images.shape))
        raise InputError(f"images: expected a tensor (3, H, W) or (N, 3, H, W), got one of {shape or 'no dimensions'}")
    for image in batch:
        if image.is_floating_point():
            lowest, highest = image.min().item(), image.max().item()
            if not (lowest >= 0 and highest <= 1):
                text = "not normalised, or uint8 from 0 to 255"
                raise InputError(f"images: expected floats from 0 to 1, {text}, got {lowest:.3g} to {highest:.3g}")
            image = (image.float() * 255).round().to(torch.uint8)
        elif image.dtype != torch.uint8:
            raise InputError(f"images: expected a tensor of uint8 or of floats from 0 to 1, got {image.dtype}")
        yield image.expand(3, -1, -1)


# ----------------------------------------------------------------------------------------------------- how it is opened


def open_images(images: Iterable[Given], transform: Transform) -> Opened:
    """Decodes images in threads, as those of a list are.

    Args:
        images: the images.
        transform: how they are resized and cropped.
    """

    def opened(one: Given) -> tuple[torch.Tensor | str, Counter[str]]:
        odd = Counter[str]()
        try:
            return transform.cut(_fit(_decoded(one, odd), one.name, transform.pre_size)), odd
        except InputError as error:
            return str(error), Counter()

    given = list(images)
    with strict(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # strict() within it then changes nothing
        found = list(pool.map(opened, given))
    pixels = [image for image, _ in found if isinstance(image, torch.Tensor)]
    empty = torch.empty(0, 3, transform.image_size, transform.image_size, dtype=torch.uint8)
    return Opened(
        [one.name for one, (image, _) in zip(given, found) if isinstance(image, torch.Tensor)],
        torch.stack(pixels) if pixels else empty,
        [image for image, _ in found if isinstance(image, str)],
        sum((odd for _, odd in found), Counter[str]()),
    )


def _decoded(one: Given, odd: Counter[str]) -> Image.Image:
    """An image in RGB; InputError where it cannot be read."""
    if isinstance(one.image, Path):
        return read_image(one.image, "leave it out", odd)
    if isinstance(one.image, torch.Tensor):
        return tvf.to_pil_image(one.image)
    if one.image.mode.startswith(("I", "F")):
        raise InputError(f"image {one.name}: its mode {one.image.mode} has more than 8 bits a channel; convert it")
    try:
        return one.image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {one.name}: cannot be decoded ({error}); leave it out") from None


def _fit(image: Image.Image, name: str, side: int) -> Image.Image:
    """The image; InputError for one so narrow that it would become too large when its shorter side is resized."""
    width, height = image.size
    if side * side * max(width, height) / max(1, min(width, height)) > MOST_PIXELS:
        raise InputError(f"{name}: its sides, {width} and {height} pixels, are too unequal; crop it, or leave it out")
    return image
