"""Images of a list as OpenOOD's batches, decoded when they are first read."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop
from torchvision.transforms import functional as tvf

from openood_dream.datasets.augment import flipped, random_crop, random_flip, simclr_views
from openood_dream.datasets.imglist import opened_rows, rows_identity
from openood_dream.datasets.mixture import Mixture
from openood_dream.datasets.reading import read_image, through_jpeg
from openood_dream.datasets.settings import NORMALIZATION
from openood_dream.device import copied, room
from openood_dream.errors import InputError

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue (ITU-R BT.601), as in Pillow's mode L
CACHE_BYTES = 1 << 30  # decoded images up to this size stay in memory; larger sets are decoded by worker processes


@dataclasses.dataclass(frozen=True)
class Transform:
    """How images are prepared: as by OpenOOD's `base` preprocessor, but for the colour jitter of its `cub` and `aircraft`.

    Args:
        pre_size: pixels of the shorter side after resizing.
        image_size: pixels a side of the centre crop, S.
        normalization: whose channel means and deviations normalise images, a key of NORMALIZATION.
        interpolation: how images are resized, a name of torchvision's InterpolationMode.
        flip: training images are mirrored left to right with probability one half, or in every other epoch ("alternate").
        crop: training images are shifted by up to `shift` pixels: padded, and cropped at random.
        resized_crop: training images are random resized crops instead (OpenOOD's rule for ImageNet).
        randaugment: RandAugment's number of changes and strength, which training images get before all else.
        channels: of what networks see: 3, the colours, or 1, their luma.
        shift: pixels that a crop shifts images by, at most.
        border: what comes into sight then: black, or the image in a mirror.
        views: of each image in a training batch: 1, or 2 of SimCLR in place of all that is said above.
        mixture: of ways of resizing in the place of `interpolation`, and of JPEG before it; None: neither.
    """

    pre_size: int
    image_size: int
    normalization: str = ""
    interpolation: str = "bilinear"
    flip: bool | str = True
    crop: bool = True
    resized_crop: bool = False
    randaugment: tuple[int, int] | None = None
    channels: int = 3
    shift: int = 4
    border: str = "black"
    views: int = 1
    mixture: Mixture | None = None

    @cached_property
    def mean(self) -> Tensor:
        """Channel means, (1, C, 1, 1)."""
        return self._channels(0)

    @cached_property
    def std(self) -> Tensor:
        """Channel deviations, (1, C, 1, 1)."""
        return self._channels(1)

    def _channels(self, which: int) -> Tensor:
        values = NORMALIZATION.get(self.normalization, ((0.5,) * 3, (0.5,) * 3))[which]
        found = torch.tensor(values).view(1, 3, 1, 1)
        return found if self.channels == 3 else found.mean(1, keepdim=True)

    @cached_property
    def _constants(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        """Means, deviations and shares of the luma by device, to which they are copied once, for gradients too."""
        return {}

    def normalize(self, pixels: Tensor) -> Tensor:
        """What networks see, float32 (B, C, S, S), of images (B, 3, S, S) from 0 to 255; those of floats are overwritten."""
        place, values = pixels.device, pixels.float()
        if place not in self._constants:
            with torch.inference_mode(False):
                luma = torch.tensor(LUMA).view(1, 3, 1, 1)
                mean, std = self._channels(0), self._channels(1)
                self._constants[place] = (mean.to(place), std.to(place), luma.to(place))
        mean, std, luma = self._constants[place]
        if self.channels == 1:
            values = (values * luma).sum(1, keepdim=True)
        return values.div_(255).sub_(mean).div_(std)

    @property
    def test_identity(self) -> dict[str, Any]:
        """What decides how a network sees an image at test time."""
        return {
            "pre_size": self.pre_size,
            "image_size": self.image_size,
            "interpolation": self.interpolation,
            "channels": self.channels,
            "normalization_type": self.normalization,
            **(self.mixture.identity if self.mixture else {}),
        }

    @property
    def augmentation_identity(self) -> dict[str, Any]:
        """What decides how a training image is augmented, by the keys of `preprocessor`."""
        return {
            "horizontal_flip": self.flip,
            "random_crop": self.crop,
            "shift": self.shift,
            "border": self.border,
            "resized_crop": self.resized_crop,
            "randaugment": self.randaugment and list(self.randaugment),
            "views": self.views,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What decides how a network sees an image in training."""
        return self.test_identity | self.augmentation_identity

    def cut(self, image: Image.Image) -> Tensor:
        """An RGB image, resized by `interpolation` and cropped as at test time, uint8 (3, S, S)."""
        mode, size = InterpolationMode(self.interpolation), [self.image_size] * 2
        return tvf.pil_to_tensor(tvf.center_crop(tvf.resize(image, self.pre_size, mode), size))

    def at_size(self, size: int) -> Transform:
        """The same cut of each image at `size` pixels a side."""
        return dataclasses.replace(self, image_size=size, pre_size=round(size * self.pre_size / self.image_size))


class ImageList(Dataset):
    """The images of a list as OpenOOD's batches: `data` (B, 3, S, S) normalised float32, `label`, `index`, `image_name`.

    With two views `data` is a list of two such tensors, as OpenOOD's preprocessor `cider` gives it.

    Opening it reads the list and no image. An image is decoded when it is first read, and at most once if the list's
    images fit into CACHE_BYTES. Transforms are applied to a whole batch at once.

    Args:
        imglist: the list.
        data_dir: the folder that its names start from.
        transform: how its images are prepared.
        augment: whether they are augmented, for training.
        key: the config key that names the list, for messages.

    Raises:
        InputError: names the list if it cannot be read; later, when it is read, an image that is missing or broken.
    """

    def __init__(
        self,
        imglist: str | Path,
        data_dir: str | Path,
        transform: Transform,
        *,
        augment: bool = False,
        key: str = "imglist_pth",
    ) -> None:
        self.imglist, self.data_dir, self.key = str(imglist), Path(data_dir), key
        self.transform, self.augment = transform, augment
        self.rows = opened_rows(imglist, key)
        self.labels = torch.tensor([label for _, label in self.rows])
        self.oddities = Counter[str]()  # of the images that were decoded
        self.epoch = 0  # of the training that takes them
        self._open()

    @classmethod
    def of_pixels(cls, pixels: Tensor, transform: Transform) -> ImageList:
        """Images that are in memory as those of a list, without labels: -1.

        Args:
            pixels: resized and cropped, uint8 (N, 3, S, S).
            transform: what prepared them, which normalises them too.
        """
        images = cls.__new__(cls)
        images.imglist, images.data_dir, images.key = "", Path(), ""
        images.transform, images.augment, images.oddities, images.epoch = transform, False, Counter(), 0
        images.rows = [(str(number), -1) for number in range(len(pixels))]
        images.labels = torch.full((len(pixels),), -1)
        images._open()
        images._decoded = _Decoded.full(pixels)
        return images

    def _open(self) -> None:
        """Makes what follows from transform and augment."""
        t = self.transform
        self._interpolation = InterpolationMode(t.interpolation)
        two = self.augment and t.views == 2
        # another crop each time, so that none can be kept
        self._resized_crop = self.augment and t.resized_crop and not two
        least = 0.4 if t.resized_crop else 0.2  # OpenOOD's
        self._view = simclr_views(t.image_size, least, self._interpolation, bool(t.flip)) if two else None
        self._randaugment = None
        if self.augment and t.randaugment is not None:
            nearest = self._interpolation is InterpolationMode.NEAREST
            mode = InterpolationMode.NEAREST if nearest else InterpolationMode.BILINEAR  # it has no others
            self._randaugment = RandAugment(*t.randaugment, interpolation=mode)
        fits = len(self.rows) * 3 * t.image_size**2 <= CACHE_BYTES
        self._decoded: _Decoded | _Resident | None = None
        if fits and not self._resized_crop:
            self._decoded = _Decoded(len(self.rows), t.image_size)

    @property
    def cached(self) -> bool:
        """Whether decoded images stay in memory."""
        return self._decoded is not None

    @property
    def resident(self) -> bool:
        """Whether decoded images are in the memory of a GPU."""
        return isinstance(self._decoded, _Resident)

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the images: their names, labels and contents, wherever they lie."""
        return rows_identity(self.rows, self.imglist, self.data_dir, self.key)

    def augmented(self) -> ImageList:
        """The same images with the augmentation of training; decoded ones are shared."""
        return self._changed(augment=True)

    def at_size(self, size: int) -> ImageList:
        """The same images at `size` pixels a side."""
        return self if size == self.transform.image_size else self._changed(transform=self.transform.at_size(size))

    def on(self, device: torch.device) -> ImageList:
        """The same images in the memory of a GPU, where their batches are made, if they fit into a quarter of it."""
        if not isinstance(self._decoded, _Decoded) or self._decoded.bytes > room(device) // 4:
            return self
        self.decode()
        other = copy.copy(self)
        other._decoded = _Resident(self._decoded.all().to(device))
        return other

    def _changed(self, **attributes: Any) -> ImageList:
        """The same list with other attributes."""
        other = copy.copy(self)
        vars(other).update(attributes)
        other._open()
        if other.cached and other.transform == self.transform and self.cached:
            other._decoded = self._decoded
        return other

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        index = torch.as_tensor(indices)
        pixels = self.pixels(index)
        return {
            "data": self._augmented(pixels, index) if self._view is None else self._views(pixels, self._view),
            "label": self.labels[index],
            "index": index,
            "image_name": [self.rows[i][0] for i in index.tolist()],
        }

    def _views(self, pixels: Tensor, view: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Two views of each image, as normalised batches."""
        return [self.transform.normalize(torch.stack([view(image) for image in pixels])) for _ in range(2)]

    def _augmented(self, pixels: Tensor, index: Tensor) -> Tensor:
        """Images as the network sees them, augmented where that is wanted, of pixels at positions `index` of the list."""
        if self._randaugment is not None:
            pixels = torch.stack([self._randaugment(image) for image in pixels])
        if self.augment and self.transform.crop and not self._resized_crop:
            pixels = random_crop(pixels, self.transform.shift, self.transform.border)
        if self.augment and self.transform.flip == "alternate":
            pixels = flipped(pixels, self._first_sides[index] ^ bool(self.epoch % 2))
        elif self.augment and self.transform.flip:
            pixels = random_flip(pixels)
        return self.transform.normalize(pixels)

    @cached_property
    def _first_sides(self) -> Tensor:
        """Which images are mirrored in even epochs (N,); always the same ones, so that a training can go on."""
        return torch.rand(len(self), generator=torch.Generator().manual_seed(len(self))) < 0.5

    def raw(self, batch_size: int) -> Iterator[Tensor]:
        """All images in order, as `pixels`, in batches of `batch_size`."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.pixels(index)

    def decode(self) -> None:
        """Decodes all images that stay in memory, so that a broken one is found before anything is written."""
        if self.cached:
            self.pixels(torch.arange(len(self)))

    def pixels(self, index: Tensor) -> Tensor:
        """Images resized and cropped but neither normalised nor, unless by a random resized crop, augmented.

        Args:
            index: their positions in the list, (B,).

        Returns:
            uint8 (B, 3, S, S).
        """
        if self._decoded is not None:
            return self._decoded.take(index, self._decode)
        return torch.stack([self._decode(i) for i in index.tolist()])

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image at a position of the list; InputError names one that is missing or broken."""
        path = self.data_dir / self.rows[index][0]
        if not os.path.exists(path):
            raise InputError(
                f"{self.imglist}: image {str(path)!r} is not there ({self.key}); check data_dir and the list"
            )
        return read_image(path, f"restore it or take it from {self.imglist}", self.oddities)

    def doubts(self) -> list[str]:
        """What is odd about the images that were decoded so far, a line each, with counts."""
        found = sorted(self.oddities.items())
        return [
            f"{self.imglist}: {count} images with {what}, as in OpenOOD; save them without" for what, count in found
        ]

    def _decode(self, index: int) -> Tensor:
        """An image, resized and cropped, uint8 (3, S, S)."""
        image, transform = self.image(index), self.transform
        if transform.mixture is not None:
            way = transform.mixture.way(index)
            image = image if way.quality is None else through_jpeg(image, way.quality)
            transform = dataclasses.replace(transform, interpolation=way.interpolation)
        if not self._resized_crop:
            return transform.cut(image)
        box = RandomResizedCrop.get_params(image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        size, mode = [transform.image_size] * 2, InterpolationMode(transform.interpolation)
        return tvf.pil_to_tensor(tvf.resized_crop(image, *box, size, mode))


class _Decoded:
    """Images that were decoded: uint8 (N, 3, S, S), and which of them are there."""

    def __init__(self, count: int, size: int) -> None:
        self._pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)  # takes memory as it is filled
        self._there = torch.zeros(count, dtype=torch.bool)

    @classmethod
    def full(cls, pixels: Tensor) -> _Decoded:
        """All of some images, uint8 (N, 3, S, S)."""
        found = cls(0, pixels.shape[-1])
        found._pixels, found._there = pixels, torch.ones(len(pixels), dtype=torch.bool)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _Decoded, (len(self._there), self._pixels.shape[-1])  # other processes decode what they read

    def take(self, index: Tensor, decode: Callable[[int], Tensor]) -> Tensor:
        """The images at positions `index` (B,), those that are not there by `decode`."""
        for i in index[~self._there[index]].unique().tolist():
            self._pixels[i] = decode(i)
            self._there[i] = True
        return self._pixels[index]

    @property
    def bytes(self) -> int:
        """How much memory they take."""
        return self._pixels.nbytes

    def all(self) -> Tensor:
        """All of them, uint8 (N, 3, S, S)."""
        return self._pixels


class _Resident:
    """Decoded images in the memory of a GPU, uint8 (N, 3, S, S)."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def take(self, index: Tensor, decode: Callable[[int], Tensor]) -> Tensor:
        """The images at positions `index` (B,)."""
        return self._pixels[copied(index, self._pixels.device)]


def as_is(batch: Any) -> Any:
    """The collate function of loaders whose data set already returns whole batches."""
    return batch


def loader(
    images: ImageList, batch_size: int, *, shuffle: bool, workers: int = 0, drop_last: bool = False
) -> DataLoader:
    """The loader of a list.

    Args:
        images: the list.
        batch_size: images per batch.
        shuffle: whether they come in random order, another one in each epoch.
        workers: processes that decode images; only lists too large for memory use them.
        drop_last: whether a last batch that is not full is left out; one of a single image always is where they come in
            random order, since BatchNorm cannot be trained with it.

    Returns:
        A loader of ImageList's batches.
    """
    workers = 0 if images.cached else workers
    alone = shuffle and len(images) > batch_size > 1 and len(images) % batch_size == 1
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=as_is,
        drop_last=drop_last or alone,
        persistent_workers=workers > 0 and images.transform.flip != "alternate",  # its workers know no later epoch
    )


def placed(batches: DataLoader, device: torch.device) -> DataLoader:
    """A loader whose batches are made in the memory of a GPU where its images fit, and copied from pinned memory else.

    Args:
        batches: a loader of an ImageList.
        device: where the batches are to go; for the CPU the loader stays what it is.

    Returns:
        A loader of the same batches in the same order.
    """
    if device.type != "cuda":
        return batches
    images = cast(ImageList, batches.dataset).on(device)
    return DataLoader(
        images,
        batch_size=batches.batch_size,
        sampler=batches.sampler,
        num_workers=batches.num_workers,
        collate_fn=batches.collate_fn,
        drop_last=batches.drop_last,
        pin_memory=not images.resident,
        persistent_workers=batches.persistent_workers,
    )
