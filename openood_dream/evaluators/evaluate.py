"""Scores a network with a detector on all test sets, and writes OpenOOD's files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from openood_dream.config.schema import Section
from openood_dream.datasets.loaders import Data
from openood_dream.errors import InputError, show, warn
from openood_dream.evaluators.metrics import (
    Row,
    Scores,
    accuracy_rows,
    compute_metrics,
    metric_rows,
    together,
    write_rows,
)
from openood_dream.evaluators.passes import TEST, Passes, Set
from openood_dream.postprocessors.base import Postprocessor
from openood_dream.postprocessors.known import find_postprocessor
from openood_dream.postprocessors.settings import PostprocessorSettings
from openood_dream.store import artifacts, files


@dataclass(frozen=True)
class Evaluation:
    """What a detector says of the images of all test sets.

    Attributes:
        id_scores: of the ID test images.
        ood_scores: of the OOD sets, by group and name.
        shifted: of the covariate-shifted ID sets, by name.
        full_spectrum: whether the shifted images count as ID in ood.csv.
    """

    id_scores: Scores
    ood_scores: dict[str, dict[str, Scores]]
    shifted: dict[str, Scores]
    full_spectrum: bool


def evaluate(
    passes: Passes,
    postprocessor: PostprocessorSettings,
    out: Path,
    *,
    config: Mapping[str, Any],
    scheme: str = "ood",
) -> np.ndarray:
    """Scores a network; writes `config.yml`, `scores/<set>.npz` and, last, `ood.csv`.

    Where there are covariate-shifted sets, their accuracies go into `csid.csv`, and the metrics with them counted as ID
    (the full spectrum) into `fsood.csv`; with the scheme fsood into `ood.csv` itself, as in OpenOOD.

    Args:
        passes: the network's passes over the data sets.
        postprocessor: the detector; with `APS_mode` its hyperparameters are those of `postprocessor_sweep` with the best
            AUROC on the validation sets.
        out: the folder that is written.
        config: all settings, for config.yml.
        scheme: `evaluator.ood_scheme`, ood or fsood.

    Returns:
        The means of METRICS over the first group of OOD sets, near-OOD's where there is one, as fractions, (5,). The
        accuracy of a network that knows no classes is NaN.

    Raises:
        InputError: the detector cannot score the network, or a score is not a number; nothing was written then.
    """
    cls = find_postprocessor(postprocessor, passes.network.get("name"))
    if postprocessor.searches:
        detector = best_on_validation(cls, postprocessor, passes)
    else:
        detector = fitted(cls, cls.arguments(postprocessor), passes)
    found = score_sets(detector, passes, passes.data, full_spectrum=scheme == "fsood")
    return _write(found, out, config, passes.data.dataset.name)


def score_sets(detector: Postprocessor, passes: Passes, data: Data, *, full_spectrum: bool) -> Evaluation:
    """Scores all test sets.

    Args:
        detector: a fitted detector.
        passes: the network's passes.
        data: says which sets there are.
        full_spectrum: whether covariate-shifted images are to count as ID in ood.csv.
    """
    id_scores = score_set(detector, passes, TEST)
    groups: dict[str, dict[str, Scores]] = {}
    for group, name in data.ood_sets():
        groups.setdefault(group, {})[name] = score_set(detector, passes, ("ood_dataset", group, name))
    shifted = {name: score_set(detector, passes, ("ood_dataset", "csid", name)) for name in data.csid_sets()}
    return Evaluation(id_scores, groups, shifted, full_spectrum)


def score_set(detector: Postprocessor, passes: Passes, which: Set) -> Scores:
    """Scores one data set.

    Args:
        detector: a fitted detector.
        passes: the network's passes.
        which: the set; unless its images are of ID classes, their labels are taken for -1.

    Raises:
        InputError: a score is not a number.
    """
    images = passes.of(which, type(detector))
    conf = checked_scores(detector, detector.confidence(images), partial(passes.image, which))
    label = images.labels.numpy()
    known = which[0] == "dataset" or which[1] == "csid"
    return Scores(detector.prediction(images).numpy(), conf, label if known else np.full_like(label, -1))


def checked_scores(detector: Postprocessor, conf: torch.Tensor, called: Callable[[int], str]) -> np.ndarray:
    """Confidences (N,) in float64.

    Args:
        detector: whose they are.
        conf: what it gave (N,).
        called: what the image of a row is called in messages.

    Raises:
        InputError: one of them is not a number.
    """
    scores = conf.double().numpy()
    if np.isnan(scores).any():
        image = called(int(np.flatnonzero(np.isnan(scores))[0]))
        raise InputError(f"{detector.name}: the score of {image} is not a number; check the checkpoint")
    return scores


def _write(found: Evaluation, out: Path, config: Mapping[str, Any], id_name: str) -> np.ndarray:
    """Writes the files of an evaluation; returns the means of the first group."""
    spectrum = together([found.id_scores, *found.shifted.values()])
    rows = metric_rows(spectrum if found.full_spectrum else found.id_scores, found.ood_scores)
    ood = {name: scores for sets in found.ood_scores.values() for name, scores in sets.items()}
    tables = {}
    if found.shifted:
        tables["csid.csv"] = accuracy_rows(found.shifted)
    if found.shifted and not found.full_spectrum:
        tables["fsood.csv"] = metric_rows(spectrum, found.ood_scores)
    write_files(out, config, {id_name: found.id_scores} | found.shifted | ood, tables | {"ood.csv": rows})
    return dict(rows)[next(iter(found.ood_scores))]


def write_files(
    out: Path, config: Mapping[str, Any], scores: Mapping[str, Scores], tables: Mapping[str, Sequence[Row]]
) -> None:
    """Writes the files of an evaluation: `config.yml`, `scores/<set>.npz` and tables.

    Args:
        out: the folder.
        config: all settings.
        scores: those of each set, by its name.
        tables: the rows of each csv file, by its name; ood.csv comes last, since it says that the others are there.
    """
    with artifacts.exclusive(out):
        (out / "ood.csv").unlink(missing_ok=True)  # of an earlier evaluation, whose scores are replaced from here on
        for folder in (out, out / "scores"):
            files.remove_unfinished(folder)
        files.write_text(out / "config.yml", yaml.safe_dump(dict(config), sort_keys=False))
        for name, one in scores.items():
            with files.replacing(out / "scores" / f"{name}.npz") as work:
                np.savez(work, pred=one.pred, conf=one.conf, label=one.label)
        for name in sorted(tables, key=lambda name: name == "ood.csv"):
            write_rows(out / name, tables[name])


def fitted(cls: type[Postprocessor], args: Section, passes: Passes) -> Postprocessor:
    """A detector that has learned from the ID training or validation images.

    Args:
        cls: its class.
        args: its hyperparameters.
        passes: the network's passes.
    """
    detector = cls(args)
    detector.fit(lambda split: passes.of(("dataset", split), cls), passes.head())
    return detector


def best_on_validation(cls: type[Postprocessor], settings: PostprocessorSettings, passes: Passes) -> Postprocessor:
    """The detector with the hyperparameters of the best AUROC on ID validation against OOD validation images.

    Of equally good ones it is the last in OpenOOD's order, in which the first hyperparameter varies fastest. Values that
    the network or its images cannot have, such as more neighbours than training images, are left out with a warning.

    Args:
        cls: its class.
        settings: the values to search in `postprocessor_sweep`, and the hyperparameters that are not searched.
        passes: the network's passes.

    Raises:
        InputError: a list of values is missing, a value impossible, or no value fits the network and its images.
    """
    lists = [swept(settings, name) for name in cls.sweep]
    combinations = [dict(zip(reversed(cls.sweep), values)) for values in itertools.product(*reversed(lists))]
    every = [cls.arguments(settings, **given) for given in combinations]  # all are checked before the first is tried
    best, best_auroc, refused = None, -1.0, None
    for given, args in zip(combinations, every):
        try:
            detector = fitted(cls, args, passes)
        except InputError as error:
            refused = error
            values = ", ".join(f"{name} {value}" for name, value in given.items())
            warn(f"{cls.name}: the search leaves out {values}, which does not fit ({error})")
            continue
        both = together(score_set(detector, passes, which) for which in (("dataset", "val"), ("ood_dataset", "val")))
        auroc = compute_metrics(both.conf, both.label, both.pred)[1]
        if auroc >= best_auroc:
            best, best_auroc = detector, auroc
    if best is None:
        assert refused is not None  # noqa: S101 # nosec B101 (an AUROC is never negative)
        raise refused
    return best


def swept(settings: PostprocessorSettings, name: str) -> list:
    """The values in `settings` to search of the hyperparameter `name`, whose key OpenOOD's odin.yml writes without `_list`."""
    sweep = settings.postprocessor_sweep or {}
    key = name if name in sweep and f"{name}_list" not in sweep else f"{name}_list"
    values = sweep.get(key)
    if not isinstance(values, list) or not values:
        raise settings.error(f"postprocessor_sweep.{key}", f"expected a list of values, got {show(values)}")
    return values
