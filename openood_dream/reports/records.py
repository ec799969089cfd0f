"""What trainings and evaluations record in their folders, and how those folders are found."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from openood_dream.config.files import BoundedLoader
from openood_dream.config.tree import lookup
from openood_dream.errors import InputError, reason, show
from openood_dream.store.files import Kinds, read_record, read_text

CONFIG = "config.yml"  # the settings of a training or an evaluation
TRAINED = "train.json"  # the record of a finished training
STARTED = "training.json"  # the same of one that is not finished
SCORED = "evaluate.json"  # the record of a finished evaluation
DETECTORS = "detectors"  # the folder of a run's detectors, a record of each
TEACHER = "teacher-"  # how the folders of networks begin that are trained for the imagination, and are no runs
REMEDY = "restore it, or delete its folder and run again"

TRAINING_KEYS: Kinds = {
    "hash": str,
    "inputs": (dict, NoneType),
    "dream": (dict, NoneType),
    "outlier_data": (str, NoneType),
    "warnings": (list, NoneType),
    "precision": (str, NoneType),
}
SCORING_KEYS: Kinds = {"hash": str, "inputs": dict, "trained": (dict, NoneType)}
DETECTOR_KEYS: Kinds = {"hash": str, "inputs": dict, "args": dict, "thresholds": dict, "images": int}


class _ConfigLoader(BoundedLoader):
    """Reads OpenOOD's config.yml, whose Config objects are dumped with Python tags, as plain dicts; runs nothing."""


_ConfigLoader.add_multi_constructor(
    "tag:yaml.org,2002:python/object/new:",
    lambda loader, _, node: loader.construct_mapping(node, deep=True).get("dictitems", {}),
)


def read_config(path: Path) -> dict[str, Any]:
    """The settings that a run's folder keeps, ours or OpenOOD's; InputError where they cannot be read."""
    try:
        text = read_text(path, REMEDY)
        config = yaml.load(text, Loader=_ConfigLoader)  # noqa: S506 # nosec B506 (it is a SafeLoader)
    except (OSError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a run's config in YAML ({reason(error)}); {REMEDY}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a run's config, got {show(config)}; {REMEDY}")
    return config


def read_training(path: Path) -> dict[str, Any]:
    """The record of a training, TRAINED or STARTED; InputError where it is damaged."""
    return read_record(path, TRAINING_KEYS)


def read_scoring(path: Path) -> dict[str, Any]:
    """The record of an evaluation; InputError where it is damaged."""
    return read_record(path, SCORING_KEYS)


def read_detector(path: Path) -> dict[str, Any]:
    """The record of a detector: its hyperparameters, and the threshold by the share of validation images that reach it.

    Raises:
        InputError: it is damaged.
        FileNotFoundError: it is not there.
    """
    remedy = "delete it and run again"
    record = read_record(path, DETECTOR_KEYS, remedy)
    for keep, threshold in record["thresholds"].items():
        if not isinstance(threshold, float) or not math.isfinite(threshold):
            raise InputError(f"{path}: thresholds.{keep}: expected a number, got {show(threshold)}; {remedy}")
    return record


def find(folder: Path, *names: str) -> list[Path]:
    """All files of some names below a folder, in order of their paths; links to folders are followed.

    Args:
        folder: where to look.
        names: of the files.

    Raises:
        InputError: a folder cannot be read, so that nobody knows what it holds.
    """
    return sorted(Path(path, name) for path, files in _walk(folder) for name in names if name in files)


def find_in(folder: Path, folders: Collection[str]) -> list[Path]:
    """All files that lie in folders of some names, at or below a folder; otherwise as `find`.

    Args:
        folder: where to look.
        folders: the names.

    Raises:
        InputError: a folder cannot be read.
    """
    return sorted(Path(path, name) for path, files in _walk(folder) if Path(path).name in folders for name in files)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below, each with the names of its files."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); make it readable, or move it away")

    seen = {os.path.realpath(folder)}
    for path, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(path, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in seen]  # a link may lead back up
        seen.update(real.values())
        yield path, files


def run_folders(records: Iterable[Path]) -> list[Path]:
    """The folders of runs that records of trainings lie in; the networks that the imagination needs are no runs."""
    found = dict.fromkeys(record.parent for record in records)
    return [one for one in found if not one.name.startswith(TEACHER)]


def learned_from(config: Mapping[str, Any]) -> str:
    """What a network learned from besides ID images, by the config of its training, ours or OpenOOD's; "none" if nothing.

    Args:
        config: the config.
    """
    if config.get("outlier_data"):
        return str(config["outlier_data"])
    imglist = lookup(config, ("dataset", "oe", "imglist_pth"))
    auxiliary = lookup(config, ("pipeline", "name")) == "train_oe" and isinstance(imglist, str)
    return Path(str(imglist)).stem if auxiliary else "none"
