"""From a user's images to a config: splits, sizes and settings are chosen once, written down, and said."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from openood_dream.config.merge import quoted
from openood_dream.datasets.folders import Found, Splits, digests, find_images, split, split_ood
from openood_dream.datasets.imglist import write_imglist
from openood_dream.datasets.reading import read_image
from openood_dream.errors import InputError, printable
from openood_dream.store import artifacts
from openood_dream.store.files import write_text
from openood_dream.store.tables import TEXTS, read_table, write_table

HOLD_OUT = 0.2  # share of the classes, where there are no OOD images
LOOKED_AT = 200  # images whose sizes decide about the size of all
SMALL, MIDDLE = 48, 128  # shorter sides up to which images are made 32 and 64 pixels large
KNN_NEEDS = 50  # training images that the detector knn takes, as shipped
STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4"


class Own(NamedTuple):
    """A config for a user's images, what was chosen in it, in lines, and whether it was there before."""

    config: Path
    said: list[str]
    reused: bool


class _Request(NamedTuple):
    """What a config is made from, and where it goes."""

    data: Path
    ood: Path | None
    hold_out: float
    root: Path

    @property
    def name(self) -> str:
        """What the images are called."""
        path = self.data.resolve()
        return re.sub(r"[^\w.-]+", "_", path.name if path.is_dir() else path.stem) or "own"

    @property
    def lists(self) -> Path:
        """The folder of the image lists."""
        return self.root / "lists"

    @property
    def record(self) -> Path:
        """The table of all images that were divided."""
        return self.lists / "images.parquet"

    @property
    def config(self) -> Path:
        """The config file."""
        return self.root / f"{self.name}.yml"

    @property
    def words(self) -> str:
        """How it was asked for."""
        return json.dumps({"hold_out": self.hold_out, "ood": self.ood is not None})


def prepare(data: Path, ood: Path | None = None, hold_out: float | None = None, root: Path | None = None) -> Own:
    """A config that imagines outliers of a user's images and compares methods on them, with the image lists it names.

    Args:
        data: the images: a folder per class, an image list or a CSV.
        ood: other images, to be told from them.
        hold_out: share of the classes that are OOD; None: 0.2 without `ood`, and 0 with it.
        root: the folder of lists, config and results; None: below results, named after the images.

    Returns:
        The config. Where it was written before from the same images it stays as it is, edited or not.

    Raises:
        InputError: the images cannot be divided, or differ from those that were; says in what.
    """
    share = (0.0 if ood else HOLD_OUT) if hold_out is None else hold_out
    if not 0 <= share < 1:
        raise InputError(f"--hold-out: expected a share of the classes from 0 to below 1, got {share:g}")
    asked = _Request(data, ood, share, Path())
    asked = asked._replace(root=root or Path("results") / asked.name)
    found = find_images(data)
    contents = digests(found)
    others = find_images(ood, classes=False) if ood else None
    other_contents = digests(others) if others else {}
    table = _table(found, contents, others, other_contents, asked)
    with artifacts.exclusive(asked.root):
        if asked.record.exists():
            _check_same(asked, table)
            if asked.config.exists():
                return Own(asked.config, [f"{asked.config}: the splits and settings of before"], True)
        splits = split(found, contents, share)
        if others:
            validate = not splits.held_out
            splits.lists.update(split_ood(others, other_contents, list(contents.values()), validate=validate))
        for name, rows in splits.lists.items():
            write_imglist(asked.lists / f"{name}.txt", rows)
        write_table(asked.record, table)
        text, said = _config(asked, found, splits, others)
        write_text(asked.config, text)
    copies = len(contents) - len(set(contents.values()))
    said += [f"{copies} copies of other images are left out"] if copies else []
    return Own(asked.config, [*said, f"written to {asked.config}, which runs"], False)


# ------------------------------------------------------------------------------------------------------ what was before


def _table(
    found: Found, contents: dict[str, str], others: Found | None, other_contents: dict[str, str], asked: _Request
) -> pd.DataFrame:
    rows = [("data", name, word, contents[name]) for name, word in found.rows]
    rows += [("ood", name, word, other_contents[name]) for name, word in (others.rows if others else [])]
    return pd.DataFrame(rows, columns=["source", "file", "class", "sha256"]).assign(asked=asked.words)


def _check_same(asked: _Request, table: pd.DataFrame) -> None:
    """InputError where a record is of other images, or was asked for in another way."""
    remedy = f"delete {asked.record.parent} and {asked.config}, or choose another --root"
    before = read_table(asked.record, dict.fromkeys(table.columns, TEXTS), remedy)
    remedy = f"choose another --root, or delete {asked.root}"
    if before["asked"].iloc[0] != asked.words:
        there = json.loads(before["asked"].iloc[0])
        words = f"--hold-out {there['hold_out']:g} and {'an' if there['ood'] else 'no'} --ood"
        raise InputError(f"{asked.record}: was made with {words}; give the same, {remedy}")
    for source in ("data", "ood"):
        old, new = (
            {row.file: (row[3], row[4]) for row in frame[frame["source"] == source].itertuples()}
            for frame in (before, table)
        )
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if names:
            what = "is new" if names[0] not in old else "is gone" if names[0] not in new else "has changed"
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            place = asked.data if source == "data" else asked.ood
            raise InputError(f"{place}: image {names[0]!r} {what} since {asked.record} was written{more}; {remedy}")


# ----------------------------------------------------------------------------------------------------------- the config


def _config(asked: _Request, found: Found, splits: Splits, others: Found | None) -> tuple[str, list[str]]:
    """The text of the config, and what is said of it."""
    side = _shorter_side(found)
    size = 32 if side <= SMALL else 64 if side <= MIDDLE else 224
    counts = Counter(label for _, label in splits.lists["train"])
    few = min(counts.values())
    per_class = min(few, 500)
    select = max(1, min(50, few // 2))
    rounds = math.ceil(min(1000, 2 * per_class) / (2 * select))
    batch = 32 if len(splits.lists["train"]) < 2000 else 128
    entries = {name.upper(): _entry(found.root, asked.lists / f"{name}.txt") for name in ("train", "val", "test")}
    values = {
        "SOURCE": printable(str(asked.data)),
        "NAME": quoted(asked.name),
        "CLASSES": len(splits.classes),
        "SIZE": size,
        "PRE": 256 if size == 224 else size,
        "BATCH": batch,
        "ROOT": quoted(asked.root.as_posix()),
        "NAMES": json.dumps(splits.classes, ensure_ascii=False),
        "K": max(1, min(100, few // 10)),
        "SELECT": select,
        "ROUNDS": rounds,
        "PER_CLASS": per_class,
        "DETECTORS": "[msp, ebo, knn]" if len(splits.lists["train"]) >= KNN_NEEDS else "[msp, ebo]",
        **entries,
    }
    text = HEAD + (SMALL_IMAGES if size <= 64 else LARGE_IMAGES) + TAIL
    text = re.sub(rf"\b({'|'.join(values)})\b", lambda found: str(values[found[0]]), text)
    text += _ood_section(asked, found, splits, others)
    lists = ", ".join(f"{name} {len(rows)}" for name, rows in splits.lists.items())
    said = [
        f"{len(splits.classes)} classes; images: {lists}",
        f"their shorter side is {side} pixels in the median, so that networks see {size}; normalised as ImageNet",
        "images are generated by "
        + ("a small model that is trained on them" if size <= 64 else f"{STABLE_DIFFUSION}, which wants a GPU"),
    ]
    if splits.held_out:
        said.append(f"held out as near-OOD: {', '.join(splits.held_out)} (--hold-out 0 keeps them)")
    return text, said


def _shorter_side(found: Found) -> int:
    """The median of the shorter sides, of some of the images."""
    step = max(1, len(found.rows) // LOOKED_AT)
    sides = [min(read_image(found.root / name, "restore it or leave it out").size) for name, _ in found.rows[::step]]
    return int(np.median(sides))


def _ood_section(asked: _Request, found: Found, splits: Splits, others: Found | None) -> str:
    if not splits.held_out and others is None:
        return NO_OOD
    held = bool(splits.held_out)
    place = found.root if held or others is None else others.root
    lines = ["", "ood_dataset:", f"  name: {quoted(asked.name + '_ood')}", f"  num_classes: {len(splits.classes)}"]
    lines += ["  batch_size: 200", "  num_workers: 0", f"  val: {{{_entry(place, asked.lists / 'val_ood.txt')}}}"]
    if held:
        lines.append(f"  nearood:  # classes that no method sees: {printable(', '.join(splits.held_out))}")
        lines += ["    datasets: [held_out]", f"    held_out: {{{_entry(found.root, asked.lists / 'near.txt')}}}"]
    if others is not None:
        lines.append("  ood:  # call it nearood or farood if you know that it is near or far")
        lines += ["    datasets: [other]", f"    other: {{{_entry(others.root, asked.lists / 'ood.txt')}}}"]
    return "\n".join(lines) + "\n"


def _entry(data_dir: Path, imglist: Path) -> str:
    return f"data_dir: {quoted(data_dir.as_posix())}, imglist_pth: {quoted(imglist.as_posix())}"


HEAD = """\
# Written by openood-dream from SOURCE. Edit it freely: what stands here is what runs, and every key that does not stand here
# has its default.
include: [pipelines/train/base.yml, networks/timm_resnet18.yml]

root: ROOT  # lists, artifacts, runs, leaderboard and report
output_dir: '@{root}'
exp_name: "runs/'@{method}'/s'@{seed}'"
method: '@{trainer.name}'
num_workers: 0  # processes that decode images; more for large ones
num_gpus: 0
pipeline: {name: benchmark}

dataset:
  name: NAME
  num_classes: CLASSES
  pre_size: PRE
  image_size: SIZE  # pixels a side that networks see
  interpolation: bilinear
  normalization_type: imagenet
  num_workers: '@{num_workers}'
  train: {TRAIN, batch_size: BATCH, shuffle: true}
  val: {VAL, batch_size: 200, shuffle: false}
  test: {TEST, batch_size: 200, shuffle: false}

preprocessor: {name: base, horizontal_flip: true}  # false for images that have a right and a left

dream:
  class_names: NAMES  # in the order of the labels
"""
SMALL_IMAGES = """\
  generator:  # trained on the training images alone; docs/generator.md
    train: small
    vae_channels: [32, 64]
    latent_channels: 4
    vae_steps: 2000
    unet_channels: [64, 128]
    pooled_text: true
    steps: 2000
    batch_size: 64
    lr: 0.002
    ema: 0.995
    prediction: v_prediction
    min_snr: 5
    embedding_noise: 0.05
  space: {network: 'timm:resnet18', epochs: 30, batch_size: BATCH, per_class: PER_CLASS}
  synthesis: {per_class: PER_CLASS, steps: 10, guidance: 2.0, batch_size: 100, size: SIZE, save_size: SIZE, residual: true}
"""
LARGE_IMAGES = """\
  generator: CompVis/stable-diffusion-v1-4  # or a folder, or {train: small} with smaller images
  space: {network: 'timm:resnet34', epochs: 100, batch_size: BATCH, per_class: PER_CLASS}
  synthesis: {per_class: PER_CLASS, steps: 20, guidance: 7.5, size: 512, save_size: 256}
"""
TAIL = """\
  outliers: {method: knn, k: K, sigma: auto, select: SELECT, n_boundary: SELECT, n_draws: 600, keep: 2, rounds: ROUNDS}
  filter: {distance: 0.9}  # drop what looks like your classes
  cache_dir: "'@{root}'/dream"

optimizer: {num_epochs: 100, lr: 0.1}

benchmark:
  seeds: [0, 1, 2]
  postprocessors: DETECTORS
  methods:
    base: [benchmarks/methods/base.yml]
    dream_ood: [pipelines/train/dream_ood.yml, preprocessors/dream.yml]
"""
NO_OOD = """
# No OOD images: it imagines and trains, and does not evaluate. --ood FOLDER names some; with three classes or more
# --hold-out 0.2 makes a near-OOD test of some of them.
"""
