"""Image lists, loaders with OpenOOD's batches and transforms, and the digits benchmark."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageFilter, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop
from torchvision.transforms import functional as tvf

from openood_dream import store
from openood_dream.config import Config, InputError, origin, shipped_configs

# Channel means and deviations by OpenOOD's normalization_type; any other name means 0.5 and 0.5.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "covid": ((0.4907,) * 3, (0.2697,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet200": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CACHE_BYTES = 1 << 30  # decoded images up to this size stay in memory; larger sets are decoded by worker processes
IMAGINED = "imagined"  # an imglist_pth that stands for the image set which the dream section describes


class ImageList(Dataset):
    """The images of an imglist as OpenOOD's batches: `data` (B, 3, S, S) normalised float32, `label`, `index`, `image_name`.

    Transforms are those of OpenOOD's `base` preprocessor (but for the colour jitter of its `cub` and `aircraft`), applied
    to a whole batch at once: resize, centre crop, and for training a horizontal flip (`flip`) and a random crop with 4
    pixels of padding (`crop`), or with `resized_crop` (OpenOOD's rule for ImageNet) a random resized crop; before these
    RandAugment with `randaugment`, (n, m). Raises InputError that names a missing or broken image.
    """

    def __init__(
        self,
        imglist: str | Path,
        data_dir: str | Path,
        *,
        pre_size: int,
        image_size: int,
        normalization: str = "",
        interpolation: str = "bilinear",
        augment: bool = False,
        flip: bool = True,
        crop: bool = True,
        resized_crop: bool = False,
        randaugment: tuple[int, int] | None = None,
        key: str = "imglist_pth",
    ) -> None:
        self.imglist, self.data_dir, self.key = str(imglist), Path(data_dir), key
        self.rows = store.read_imglist(imglist, key)
        self.labels = torch.tensor([label for _, label in self.rows])
        self.pre_size, self.image_size = pre_size, image_size
        self.interpolation = InterpolationMode(interpolation)
        self.augment, self.flip, self.crop, self.resized_crop = augment, flip, crop, augment and resized_crop
        self.randaugment = None
        if augment and randaugment is not None:
            nearest = self.interpolation is InterpolationMode.NEAREST
            mode = InterpolationMode.NEAREST if nearest else InterpolationMode.BILINEAR  # it has no others
            self.randaugment = RandAugment(*randaugment, interpolation=mode)
        mean, std = NORMALIZATION.get(normalization, ((0.5,) * 3, (0.5,) * 3))
        self.mean, self.std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        cached = len(self.rows) * 3 * image_size**2 <= CACHE_BYTES and not self.resized_crop
        self.pixels = torch.stack([self._pixels(i) for i in range(len(self.rows))]) if cached else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        index = torch.as_tensor(indices)
        if self.pixels is not None:
            pixels = self.pixels[index]
        else:
            pixels = torch.stack([self._pixels(i) for i in index.tolist()])
        if self.randaugment is not None:
            pixels = torch.stack([self.randaugment(image) for image in pixels])
        if self.augment and self.crop and not self.resized_crop:
            pixels = random_crop(pixels, padding=4)
        if self.augment and self.flip:
            pixels = random_flip(pixels)
        return {
            "data": pixels.float().div_(255).sub_(self.mean).div_(self.std),
            "label": self.labels[index],
            "index": index,
            "image_name": [self.rows[i][0] for i in index.tolist()],
        }

    def raw(self, batch_size: int) -> Iterator[torch.Tensor]:
        """All images in order, resized and cropped but neither augmented nor normalised, as uint8 (B, 3, S, S)."""
        for start in range(0, len(self), batch_size):
            some = range(start, min(start + batch_size, len(self)))
            yield (
                self.pixels[some.start : some.stop]
                if self.pixels is not None
                else torch.stack([self._pixels(i) for i in some])
            )

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image; InputError names one that is missing or broken."""
        path = self.data_dir / self.rows[index][0]
        if not os.path.exists(path):
            raise InputError(
                f"{self.imglist}: image {str(path)!r} is not there ({self.key}); check data_dir and the list"
            )
        return read_image(path, f"restore it or take it from {self.imglist}")

    def _pixels(self, index: int) -> torch.Tensor:
        image = self.image(index)
        if self.resized_crop:
            box = RandomResizedCrop.get_params(image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
            image = tvf.resized_crop(image, *box, [self.image_size, self.image_size], self.interpolation)
        else:
            image = tvf.center_crop(tvf.resize(image, self.pre_size, self.interpolation), [self.image_size] * 2)
        return tvf.pil_to_tensor(image)


def read_image(path: Path, remedy: str = "restore it") -> Image.Image:
    """A decoded RGB image; InputError names one that is missing or broken, and the remedy."""
    try:
        with strict(), Image.open(io.BytesIO(path.read_bytes())) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut all values above 255
                raise ValueError(f"its mode {image.mode} has more than 8 bits a channel, save it with 8")
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        images = path.parent.parent
        if (images / store.MANIFEST).exists():  # it was drawn here
            remedy = f"openood-dream verify {images} says how to repair it"
        raise InputError(f"{path}: broken image ({error}); {remedy}") from None


@contextmanager
def strict() -> Iterator[None]:
    """Pillow refuses truncated images within the block; OpenOOD, once imported, lets them pass as half grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def random_crop(pixels: torch.Tensor, padding: int) -> torch.Tensor:
    """Each image of (B, C, H, W), padded with zeros, cropped back to its size at its own random place."""
    batch, channels, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    picked = padded[torch.arange(batch).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.permute(0, 3, 1, 2)


def random_flip(pixels: torch.Tensor) -> torch.Tensor:
    """Each image of (B, C, H, W) mirrored left to right with probability one half."""
    return torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(3), pixels)


def whole(config: Config, key: str) -> int:
    """The integer >= 1 at a dotted key; InputError for anything else."""
    value = config.at(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{origin(config, key)}: {key}: expected an integer >= 1, got {value!r}")
    return value


def switch(config: Config, key: str) -> bool:
    """The truth value at a dotted key, true where there is none; InputError for anything else."""
    value = config.at(key, True)
    if not isinstance(value, bool):
        raise InputError(f"{origin(config, key)}: {key}: expected true or false, got {value!r}")
    return value


def as_is(batch: dict[str, Any]) -> dict[str, Any]:
    """The collate function of loaders whose data set already returns whole batches."""
    return batch


def image_list(
    config: Config, split: str, section: Config, *, name: str = "dataset", augment: bool = False
) -> ImageList:
    """The data set of a split: `section` holds its imglist_pth and data_dir, `config` the dataset's sizes and transforms."""
    dataset, key = config.dataset, f"{name}.{split}"
    known, interpolation = [mode.value for mode in InterpolationMode], dataset.interpolation or "bilinear"
    if interpolation not in known:
        where = origin(config, "dataset.interpolation")
        raise InputError(f"{where}: dataset.interpolation: expected one of {', '.join(known)}, got {interpolation!r}")
    return ImageList(
        section["imglist_pth"],
        section["data_dir"],
        pre_size=dataset.pre_size,
        image_size=dataset.image_size,
        normalization=dataset.normalization_type or "",
        interpolation=interpolation,
        augment=augment,
        flip=switch(config, "preprocessor.horizontal_flip"),
        crop=switch(config, "preprocessor.random_crop"),
        resized_crop="imagenet" in dataset.name,
        randaugment=randaugment(config) if augment else None,
        key=f"{key}.imglist_pth",
    )


def randaugment(config: Config) -> tuple[int, int] | None:
    """n and m of `preprocessor: {name: randaugment, n: 1, m: 14}`, or None where the preprocessor is another."""
    if (config.preprocessor or {}).get("name") != "randaugment":
        return None
    n, m = whole(config, "preprocessor.n"), whole(config, "preprocessor.m")
    if m > 30:
        where = origin(config, "preprocessor.m")
        raise InputError(f"{where}: preprocessor.m: expected an integer from 1 to 30, got {m}")
    return n, m


def loader(images: ImageList, batch_size: int, *, shuffle: bool, workers: int = 0) -> DataLoader:
    """Batches of `images`; only sets too large for memory use worker processes."""
    workers = 0 if images.pixels is not None else workers
    return DataLoader(images, batch_size=batch_size, shuffle=shuffle, num_workers=workers, collate_fn=as_is)


def id_loader(config: Config, split: str, *, augment: bool = False) -> DataLoader:
    """The loader of `dataset.<split>`; labels are checked against dataset.num_classes."""
    dataset = config.dataset
    section = section_of(config, ("dataset", split))
    batch_size = whole(config, f"dataset.{split}.batch_size")
    images = image_list(config, split, section, augment=augment)
    if split != "oe":
        check_labels(images, dataset.num_classes)
    return loader(images, batch_size, shuffle=augment, workers=dataset.num_workers or 0)


def ood_sets(config: Config) -> list[tuple[str, str]]:
    """(group, name) of every OOD test set: the groups nearood and farood of `ood_dataset`."""
    return [(group, name) for group in ("nearood", "farood") for name in set_names(config, group)]


def csid_sets(config: Config) -> list[str]:
    """The names of the covariate-shifted ID sets, `ood_dataset.csid.datasets`; none where there is no such group."""
    return set_names(config, "csid") if config.ood_dataset.csid else []


def set_names(config: Config, group: str) -> list[str]:
    key = f"ood_dataset.{group}.datasets"
    names = config.at(key)
    if not isinstance(names, list) or not names:
        where = origin(config, key)
        raise InputError(f"{where}: {key}: expected a list of data set names, got {names!r}")
    return names


def ood_loader(config: Config, *path: str) -> DataLoader:
    """The loader of `ood_dataset.val`, on which alone hyperparameters may be chosen, or of a (group, name).

    The labels of a covariate-shifted set (csid) are ID classes, and checked against dataset.num_classes.
    """
    section = section_of(config, ("ood_dataset", *path))
    images = image_list(config, ".".join(path), section, name="ood_dataset")
    if path[0] == "csid":
        check_labels(images, config.dataset.num_classes)
    batch_size, workers = whole(config, "ood_dataset.batch_size"), config.ood_dataset.num_workers or 0
    return loader(images, batch_size, shuffle=False, workers=workers)


def section_of(config: Config, which: Sequence[str]) -> Config:
    """The section of the data set under these keys, such as ("dataset", "test"); InputError where it is missing."""
    section: Any = config
    for part in which:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        where = origin(config, which[0])
        raise InputError(f"{where}: {'.'.join(which)}: missing; expected imglist_pth and data_dir")
    for key in ("imglist_pth", "data_dir"):
        if not isinstance(section.get(key), str):
            where = origin(config, ".".join((*which, key))) or "config"
            raise InputError(f"{where}: {'.'.join((*which, key))}: expected a path, got {section.get(key)!r}")
    return section


def check_labels(images: ImageList, num_classes: int) -> None:
    """Raises InputError for a label that is not one of the ID classes."""
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= num_classes:
        wrong = highest if highest >= num_classes else lowest
        expected = f"labels 0 to {num_classes - 1} (dataset.num_classes: {num_classes})"
        raise InputError(f"{images.imglist}: label {wrong} does not fit; expected {expected}")


def class_names(config: Config) -> list[str]:
    """`dream.class_names`: a list, or a file with one name a line; as many as dataset.num_classes.

    A file that is not there is looked up in `shipped_configs()`.
    Raises InputError for a missing file or a number of names that does not fit the labels.
    """
    names = config.dream.class_names
    where = origin(config, "dream.class_names")
    if isinstance(names, str):
        path = Path(names) if os.path.exists(names) else shipped_configs() / names
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            found = f"byte 0x{error.object[error.start]:02x}"
            raise InputError(f"{where}: dream.class_names: {path}: expected UTF-8 text, got {found}") from None
        except (OSError, ValueError):
            raise InputError(
                f"{where}: dream.class_names: no such file {names!r}; expected one class name a line"
            ) from None
        names = [line.strip() for line in lines if line.strip()]
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(
                    f"{where}: dream.class_names: {path}: expected each name once, got {name!r} {count} times"
                )
    count = config.dataset.num_classes
    if len(names) != count:
        raise InputError(
            f"{where}: dream.class_names: {len(names)} names for {count} classes (dataset.num_classes); expected as many"
        )
    return list(names)


# -------------------------------------------------------------------------------------------- the digits benchmark

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five")  # ID; six to nine are near-OOD
SHIFTED = ("test_rotated", "test_blurred", "test_noisy", "test_contrast")  # covariate-shifted ID test digits
DIGIT_SETS = ("train", "val", "test", "val_turned", "test_near_digits", "test_flower", "test_noise", "train_aux")
DIGIT_SETS += (*SHIFTED, "train_pixel_noise")


def make_digits(root: str | Path, seed: int = 0) -> None:
    """Writes scikit-learn's digits as a benchmark in OpenOOD's layout under `root`, once; the same files for the same seed.

    ID digits zero to five (train 70 %, val 10 %, test 20 %), near-OOD six to nine, far-OOD patches of flower.jpg and
    noise, auxiliary outliers for OE of china.jpg patches and blends of two ID training digits, OOD validation ID
    validation digits turned by a quarter. ID test digits rotated, blurred, noisy and of low contrast are the
    covariate-shifted sets, ID training digits under heavy noise a cheap kind of outliers. All 32x32 RGB PNG. No
    near-OOD class is in any set but its own. A folder that an earlier version wrote gets the sets that it lacks.
    """
    root = Path(root)
    lists = root / "benchmark_imglist" / "digits"

    def missing() -> list[str]:
        manifest = store.complete(lists) or {"seed": seed, "images": {}}
        if manifest["seed"] != seed:
            raise InputError(
                f"{root}: holds the digits of seed {manifest['seed']}, not {seed}; choose another data_root"
            )
        return [name for name in DIGIT_SETS if name not in manifest["images"]]

    if not missing():
        return
    with store.exclusive(root):
        todo = missing()
        if not todo:  # another process made them while this one waited
            return
        sets = _digit_sets(seed)
        for name in todo:
            rows = []
            for number, (image, label) in enumerate(sets[name]):
                folder = DIGIT_NAMES[label] if label >= 0 else "ood"
                file = Path("digits") / name / folder / f"{number:04d}.png"
                _save(root, file, image)
                rows.append((file.as_posix(), label))
            store.write_imglist(lists / f"{name}.txt", rows)
        store.remove_unfinished(lists)
        counts = {name: len(rows) for name, rows in sets.items()}
        store.write_json(lists / store.MANIFEST, {"seed": seed, "images": counts})


def _save(root: Path, file: str | Path, image: np.ndarray) -> None:
    """Writes an image (S, S, 3) uint8 of a benchmark that is made here, at the place that its list names."""
    path = root / "images_classic" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path)


def _digit_sets(seed: int) -> dict[str, list[tuple[np.ndarray, int]]]:
    """The images (32, 32, 3) uint8 and labels of each of DIGIT_SETS."""
    from sklearn.datasets import load_digits, load_sample_image

    rng = np.random.default_rng(seed)
    digits = load_digits()
    glyphs = np.stack([_upscale(image) for image in digits.images])
    by_class = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(10)]
    splits: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "val": [], "test": []}
    for label in range(len(DIGIT_NAMES)):
        train, val, test = np.split(by_class[label], [int(0.7 * len(by_class[label])), int(0.8 * len(by_class[label]))])
        for split, members in (("train", train), ("val", val), ("test", test)):
            splits[split] += [(glyphs[i], label) for i in members]

    turned = [(np.rot90(image, turn), -1) for image, label in splits["val"] if label >= 2 for turn in (1, 3)]
    near = [(glyphs[i], -1) for label in range(len(DIGIT_NAMES), 10) for i in by_class[label]]
    train_images = np.stack([image for image, _ in splits["train"]])
    first, second = rng.integers(len(train_images), size=(2, 400))
    blends = np.maximum(train_images[first], train_images[second])
    sets = {
        **splits,
        "val_turned": turned,
        "test_near_digits": near,
        "test_flower": [(patch, -1) for patch in _patches(load_sample_image("flower.jpg"), 400, rng)],
        "test_noise": [(noise, -1) for noise in rng.integers(0, 256, size=(400, 32, 32, 3), dtype=np.uint8)],
        "train_aux": [(image, -1) for image in (*_patches(load_sample_image("china.jpg"), 400, rng), *blends)],
    }
    # numbers of their own, so that the sets above stay what they were before there were these
    rng = np.random.default_rng([seed, 1])
    for name, shift in zip(SHIFTED, (_rotated, _blurred, _noisy, _pale), strict=True):
        sets[name] = [(shift(image, rng), label) for image, label in splits["test"]]
    sets["train_pixel_noise"] = [(_noisy(image, rng, 120), -1) for image, _ in splits["train"]]
    return sets


def _rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 20 to 40 degrees to either side."""
    angle = rng.uniform(20, 40) * rng.choice([-1, 1])
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC))


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a radius of 2 to 4 pixels; 4 are one of the 8x8 real ones."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(2, 4))))


def _noisy(image: np.ndarray, rng: np.random.Generator, deviation: float = 60) -> np.ndarray:
    """Gaussian noise on every channel of every pixel."""
    return (image + rng.normal(0, deviation, image.shape)).clip(0, 255).round().astype(np.uint8)


def _pale(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fifth to two fifths of the contrast, around a random grey."""
    factor, grey = rng.uniform(0.2, 0.4), rng.uniform(60, 195)
    return (grey + factor * (image - 127.5)).clip(0, 255).round().astype(np.uint8)


def _upscale(glyph: np.ndarray) -> np.ndarray:
    """An 8x8 digit of values 0 to 16 as (32, 32, 3) uint8."""
    image = Image.fromarray((glyph * (255 / 16)).round().astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def _patches(photo: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random square patches of a photo, 32 to 96 pixels wide, scaled to 32x32."""
    patches = []
    for _ in range(count):
        width = int(rng.integers(32, 97))
        top, left = rng.integers(photo.shape[0] - width), rng.integers(photo.shape[1] - width)
        patch = Image.fromarray(photo[top : top + width, left : left + width])
        patches.append(np.asarray(patch.resize((32, 32), Image.Resampling.BILINEAR)))
    return patches


# ------------------------------------------------------------------------------------------- the benchmark of likelihoods

REAL = Path("data/benchmark_imglist/cifar10")  # where OpenOOD's configs expect the lists


def make_frl_cifar10(root: str | Path, seed: int = 0, count: int = 300) -> None:
    """Writes what the benchmark of likelihoods needs besides real images under `root`, once; the same for the same seed.

    Uniform noise and images of one constant colour, 32x32 RGB PNG, and lists of `count` images: those, and evenly
    spaced ones of OpenOOD's CIFAR-10 test and OOD lists.
    """
    root = Path(root)
    lists = root / "benchmark_imglist" / "frl_cifar10"
    if store.complete(lists) is not None:
        return
    names = ("test_cifar10", "test_tin", "test_mnist", "test_texture")
    sets = {name: store.read_imglist(REAL / f"{name}.txt", "dataset.make") for name in names}
    with store.exclusive(root):
        if store.complete(lists) is not None:  # by another process, while this one waited
            return
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        colours = rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(32, axis=1).repeat(32, axis=2)
        for name, images in {"noise": noise, "constant": colours}.items():
            sets[name] = [(f"frl_cifar10/{name}/{number:04d}.png", -1) for number in range(count)]
            for (file, _), image in zip(sets[name], images):
                _save(root, file, image)
        for name, rows in sets.items():
            chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
            store.write_imglist(lists / f"{name}.txt", [rows[i] for i in chosen])
        store.write_json(lists / store.MANIFEST, {"seed": seed, "count": count})


BUILT_IN = {"digits": make_digits, "frl_cifar10": make_frl_cifar10}


def ensure(config: Config) -> None:
    """Writes the benchmark that `dataset.make` names under `data_root`, if it is not there yet."""
    name = (config.dataset or {}).get("make")
    if name is None:
        return
    if name not in BUILT_IN:
        where = origin(config, "dataset.make")
        raise InputError(f"{where}: dataset.make: unknown benchmark {name!r}; expected one of {', '.join(BUILT_IN)}")
    BUILT_IN[name](config.data_root or "data")
