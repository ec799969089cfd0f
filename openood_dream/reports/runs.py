"""Finished runs read from their folders: one row per run, with the metrics of its csv files in percent."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openood_dream.config.tree import flat, lookup
from openood_dream.errors import InputError, warn
from openood_dream.reports.columns import KINDS, SHORT, short
from openood_dream.reports.records import (
    CONFIG,
    SCORED,
    STARTED,
    TRAINED,
    find,
    find_in,
    learned_from,
    read_config,
    read_scoring,
    read_training,
    run_folders,
)
from openood_dream.reports.summaries import FOLDERS, is_summary, read_summaries
from openood_dream.store.arrays import read_arrays
from openood_dream.store.files import check_file, fingerprint, sha256

MOST_CSV = 16 << 20  # bytes of an ood.csv, to which OpenOOD appends
# Keys of a training's config that have no say in its numbers: where things lie, and how they are computed.
NEUTRAL = {"imglist_pth", "data_dir", "num_workers", "num_gpus", "cache_dir", "checkpoint", "val", "test"}
# The keys of a run's config that tell it from others; the column is the key's first word.
RUN_KEYS = ("method", "seed", "postprocessor.name", "network.name", "dataset.name")


def collect(run_dirs: Sequence[Path]) -> pd.DataFrame:
    """Reads every run (method, seed, postprocessor) that has an `ood.csv` anywhere beneath some folders.

    OpenOOD appends to ood.csv, so the last row of a data set counts. It also has full-spectrum runs of their own, which
    are joined to the others.

    Args:
        run_dirs: the folders; a run beneath several of them is read once.

    Returns:
        One row per run, metrics in percent; none where there are files of eval_ood.py alone. `auroc_<set>` is the AUROC
        of an OOD set, `acc_<set>` the accuracy on a covariate-shifted set, `outlier_data` what the network learned from
        besides ID images, `warnings` what is doubtful about it. `settings` is all that determines the numbers but the
        seed, by dotted key, and `imagined` the settings behind the fingerprint of imagined outliers among them.

    Raises:
        InputError: a folder without runs, a malformed file, or two runs that claim to be the same.
    """
    files: dict[Path, None] = {}
    trained: dict[Path, None] = {}
    for folder in map(Path, run_dirs):
        found = find(folder, "ood.csv", TRAINED, STARTED)
        scored = [path.resolve() for path in found if path.name == "ood.csv"]
        if not scored and not _summaries(folder):
            raise InputError(
                f"{folder}: no ood.csv beneath it, and no ood/*.csv of eval_ood.py; expected a folder with evaluated runs"
            )
        files |= dict.fromkeys(scored)
        trained |= dict.fromkeys(run_folders(path for path in found if path.name != "ood.csv"))
    plain: list[dict[str, Any]] = []
    spectrum: list[dict[str, Any]] = []
    for path in files:
        run, full = _read_run(path)
        (spectrum if full else plain).append(run)
    for runs in plain, spectrum:
        _refuse_twins(runs)
    _warn_of_unscored(trained, {run["training"] for run in [*plain, *spectrum]})
    _join(plain, spectrum)
    return pd.DataFrame(plain).astype({"epochs": "Int64"}) if plain else pd.DataFrame()


def summaries(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads what OpenOOD's `eval_ood.py --save-csv` wrote anywhere beneath some folders.

    Args:
        run_dirs: the folders.

    Returns:
        Rows for table.table, means over seeds.

    Raises:
        InputError: a malformed file, or nobody knows what was trained.
    """
    return read_summaries([path.resolve() for folder in run_dirs for path in _summaries(Path(folder))])


def _summaries(folder: Path) -> list[Path]:
    return [path for path in find_in(folder, FOLDERS) if is_summary(path)]


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, confidences and labels (N,) of a scores/<set>.npz.

    Raises:
        InputError: the file is damaged.
    """
    found = read_arrays(path, "score the run again", pred="iu", conf="iuf", label="iu")
    return found["pred"], found["conf"], found["label"]


def _warn_of_unscored(folders: Iterable[Path], scored: Collection[str | None]) -> None:
    """Warns of trainings that the table lacks, because they are not finished or nobody scored them.

    Args:
        folders: those of trainings.
        scored: the hashes of the trainings that the table has.
    """
    for folder in folders:
        if not (folder / TRAINED).exists():
            warn(f"{folder}: not finished, so it is not in the table; run its command again, or leave it out")
        elif read_training(folder / TRAINED)["hash"] not in scored:
            warn(f"{folder}: trained and not scored, so it is not in the table; evaluate it, or leave it out")


def _identity(run: Mapping[str, Any]) -> tuple:
    return tuple(run[key.partition(".")[0]] for key in RUN_KEYS)


def _refuse_twins(runs: list[dict[str, Any]]) -> None:
    """InputError where two runs agree in all RUN_KEYS, and in all else that determines them."""
    seen: dict[tuple, dict[str, Any]] = {}
    for run in runs:
        other = seen.setdefault((*_identity(run), fingerprint(run["settings"])), run)
        if other is not run:
            what = ", ".join(f"{key.partition('.')[0]} {value}" for key, value in zip(RUN_KEYS, _identity(run)))
            raise InputError(f"{other['path']} and {run['path']} are all {what}; give only one of them")


def _join(plain: list[dict[str, Any]], spectrum: list[dict[str, Any]]) -> None:
    """Adds the metrics of OpenOOD's full-spectrum runs to the runs that they belong to."""
    by_identity = {_identity(run): run for run in plain}
    for run in spectrum:
        if _identity(run) not in by_identity:
            raise InputError(f"{run['path']}: a full-spectrum run alone; give the run of ood_scheme ood with it")
        own = by_identity[_identity(run)]
        own |= {key: value for key, value in run.items() if key not in own}


def _own_label(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config itself says that a network learned from, if it does."""
    return {"outlier_data": config["outlier_data"]} if config.get("outlier_data") else {}


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, or None."""
    return lookup(config, key.split("."))


def _read_run(path: Path) -> tuple[dict[str, Any], bool]:
    """The row of the run that an ood.csv belongs to, and whether that is one of the full spectrum alone."""
    config_path = path.with_name(CONFIG)
    config = read_config(config_path)
    trained = _training_config(config)
    full = "fsood" in (_at(config, "evaluator.ood_scheme"), _at(config, "evaluator.name"))
    groups = _groups(config)
    run = _names(config_path, config, trained) | _metrics(path, list(groups) or list(SHORT), full)
    run["groups"] = {short(name): sets for name, sets in groups.items()}
    epochs = _at(trained, "optimizer.num_epochs")
    run["epochs"] = epochs if isinstance(epochs, int) else None
    records = _records(path.parent)
    run |= {key: record["hash"] for key, record in records.items()}
    checkpoint = path.parent.parent / "best.ckpt"
    if checkpoint.is_file():
        run["checkpoint"] = sha256(checkpoint)[:16]
    # OpenOOD writes no record; the configs of its runs say it where they learned from more than ID images
    about = records.get("run") or records.get("evaluation", {}).get("trained") or _training_record(config)
    known = str(about.get("outlier_data") or "none") if about else learned_from(trained | _own_label(config))
    about = about or {}
    run |= {"outlier_data": known, "path": str(path.parent), "evaluator": _at(config, "evaluator.name")}
    run["training"] = about.get("hash")
    run |= {"warnings": about.get("warnings") or [], "imagined": dict(flat({"dream": about.get("dream") or {}}))}
    return run | {"settings": _settings(about, records.get("evaluation", {}), trained)}, full


def _groups(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the OOD test sets in each group of a run's config."""
    section = config.get("ood_dataset")
    given = section.items() if isinstance(section, dict) else ()
    found = {name: group["datasets"] for name, group in given if isinstance(group, dict) and group.get("datasets")}
    return {str(name): [*map(str, sets)] for name, sets in found.items() if name != "csid" and isinstance(sets, list)}


def _settings(about: Mapping[str, Any], evaluation: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines the numbers of a run but its seed, by dotted key.

    Args:
        about: the record of its training; empty where that was not ours.
        evaluation: the record of its evaluation; empty where that was not ours.
        trained: the config of its training.
    """
    inputs = about.get("inputs")
    if inputs:
        found = dict(flat({key: value for key, value in inputs.items() if key != "seed"} | {"code": about.get("code")}))
    else:
        sections = ("dataset", "network", "preprocessor", "trainer", "optimizer", "dream")
        found = dict(flat({name: trained.get(name) for name in sections if isinstance(trained.get(name), dict)}))
        found = {key: value for key, value in found.items() if not NEUTRAL & set(key.split("."))}
    scored = {key: value for key, value in evaluation.get("inputs", {}).items() if key not in ("run", "checkpoint")}
    found |= dict(flat(scored)) | ({"evaluation.code": evaluation.get("code")} if evaluation else {})
    # other programs' YAML holds dates and NaN, which have no fingerprint
    return {key: json.loads(json.dumps(value, default=str), parse_constant=str) for key, value in found.items()}


def _training_record(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the training of the checkpoint that a config names left beside it, if that was ours."""
    checkpoint = _at(config, "network.checkpoint")
    beside = Path(checkpoint).with_name(TRAINED) if isinstance(checkpoint, str) and checkpoint else None
    return read_training(beside) if beside is not None and beside.is_file() else None


def _names(path: Path, config: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of RUN_KEYS, of the configs of a run's evaluation (file `path`) and of its training."""
    trained = {**trained, "method": trained.get("method") or _at(trained, "trainer.name")}
    found = {}
    for key in RUN_KEYS:
        value = _at(trained if key in ("method", "seed") else config, key)
        kind, wanted = (int, "an integer") if key == "seed" else (str, "a name")
        if not isinstance(value, kind):
            raise InputError(f"{path}: {key}: expected {wanted}, got {value!r}")
        found[key.partition(".")[0]] = value
    return found


def _metrics(path: Path, groups: Sequence[str], full: bool) -> dict[str, float]:
    """The metrics in an ood.csv, which is a full-spectrum one where `full`, and in the files beside it."""
    scores = _read_csv(path, groups)
    files = {"fsood.csv" if full else "ood.csv": scores}
    for name, rows in () if full else (("fsood.csv", groups), ("csid.csv", ["csid"])):
        if path.with_name(name).is_file():
            files[name] = _read_csv(path.with_name(name), rows)
    found = {
        f"{short(group)}{kind}": files[file][group][column]
        for kind, (file, column, _) in KINDS.items()
        for group in groups
        if file in files
    }
    if not full:
        found["id_acc"] = scores[groups[0]]["ACC"]  # the same in every row
        found |= {f"auroc_{name}": row["AUROC"] for name, row in scores.items() if name not in groups}
    shifted = {name: row["ACC"] for name, row in files.get("csid.csv", {}).items()}
    return found | {"csid_acc" if name == "csid" else f"acc_{name}": value for name, value in shifted.items()}


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a run's training and of its evaluation in `folder`, where they are ours."""
    files = {"run": (read_training, folder.parent / TRAINED), "evaluation": (read_scoring, folder / SCORED)}
    records = {key: read(path) for key, (read, path) in files.items() if path.is_file()}
    scored = records["evaluation"]["inputs"].get("run") if "evaluation" in records else None
    if scored is not None and "run" in records and scored != records["run"]["hash"]:
        raise InputError(f"{folder}: scores of a network that was trained again since; delete them or score it again")
    return records


def _training_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config that knows how the network was trained; OpenOOD's test runs have it beside their checkpoint."""
    checkpoint = _at(config, "network.checkpoint")
    if config.get("method") or _at(config, "trainer.name") or not (checkpoint and isinstance(checkpoint, str)):
        return config
    beside = Path(checkpoint).with_name(CONFIG)
    return read_config(beside) if beside.is_file() else config


def _read_csv(path: Path, rows: Sequence[str]) -> dict[str, dict[str, float]]:
    """The last row of each data set in ood.csv or its like: {dataset: {column: percent}}; `rows` must be there."""
    check_file(path, "score the run again", MOST_CSV)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found, columns = {row["dataset"]: row for row in reader if "dataset" in row}, reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected OpenOOD's CSV: {error}") from error
    needed = ["dataset", "AUROC", "FPR@95", "ACC"]
    if missing := [column for column in needed if column not in columns]:
        raise InputError(f"{path}: column {missing[0]} is missing; expected at least {', '.join(needed)}")
    if missing := [name for name in rows if name not in found]:
        raise InputError(f"{path}: row {missing[0]} is missing; the evaluation did not finish, run it again")
    return {name: {c: _percent(path, name, c, row[c]) for c in needed[1:]} for name, row in found.items()}


def _percent(path: Path, row: str, column: str, text: str | None) -> float:
    if text in ("nan", "-") and (column == "ACC" or path.name == "csid.csv"):  # no classes, or no OOD images
        return float("nan")
    value = pd.to_numeric(text or "", errors="coerce")
    if not 0 <= value <= 100:
        raise InputError(f"{path}: row {row}, column {column}: expected a percentage from 0 to 100, got {text!r}")
    return float(value)
