"""What OpenOOD's `scripts/eval_ood.py --save-csv` leaves: means over seeds, in `ood` and `fsood` beside s0, s1, ..."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from openood_dream.config.tree import lookup
from openood_dream.errors import InputError
from openood_dream.reports.columns import KINDS, SHORT
from openood_dream.reports.records import CONFIG, learned_from, read_config
from openood_dream.store.files import check_file

FOLDERS = ("ood", "fsood")
COLUMNS = ["", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
CELL = re.compile(r"\s*(\d+\.\d+|nan) \u00b1 (\d+\.\d+|nan)\s*")
# the folder of OpenOOD's trainings: data set, network, trainer, epochs, and more
RUN = re.compile(r"([^_]+)(_oe)?_(resnet\d+(?:_\d+x\d+)?|[a-z]\w*?_net|timm:[^_]\w*?|udg)_(\w+?)_e(\d+)(?:_.*)?")
NAMES = {"temp_scaling": "temperature_scaling"}  # what evaluation_api calls otherwise than OpenOOD's configs
REMEDY = "run eval_ood.py --save-csv again"


def is_summary(path: Path) -> bool:
    """Whether a file is one that eval_ood.py wrote: in `ood` or `fsood`, beside the folder of at least one seed."""
    return path.parent.name in FOLDERS and path.suffix == ".csv" and bool(_seeds(path.parent.parent))


def read_summaries(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows for a table, one for each training and postprocessor.

    Args:
        paths: files of which `is_summary` is true.

    Returns:
        Rows with the columns of table.table, and those of runs.collect in which runs must agree.

    Raises:
        InputError: a file is malformed, a full-spectrum one stands alone, or nobody knows what was trained.
    """
    files = dict.fromkeys(paths)
    rows = {(path.parent.parent, path.stem): _row(path) for path in files if path.parent.name == "ood"}
    for path in files:
        if path.parent.name == "fsood":
            row = rows.get((path.parent.parent, path.stem))
            if row is None:
                raise InputError(f"{path}: a full-spectrum file alone; run eval_ood.py without --fsood too")
            row |= _metrics(path, row["seeds"], full=True)
    return list(rows.values())


def _seeds(folder: Path) -> list[Path]:
    """The folders of seeds that eval_ood.py averages over."""
    return sorted(path for path in folder.glob("s*") if path.is_dir())


def _row(path: Path) -> dict[str, Any]:
    """The row that a file in `ood` stands for."""
    folder = path.parent.parent
    seeds = _seeds(folder)
    row = _training(folder, seeds) | {"postprocessor": NAMES.get(path.stem, path.stem), "path": str(path)}
    note = f"by OpenOOD's eval_ood.py in {folder.name}"
    return row | {"seeds": len(seeds), "published": False, "notes": note} | _metrics(path, len(seeds), full=False)


def _training(folder: Path, seeds: Sequence[Path]) -> dict[str, Any]:
    """What was trained: by the config of a seed's training, or by the name that OpenOOD gives to the folder."""
    config = next((read_config(seed / CONFIG) for seed in seeds if (seed / CONFIG).is_file()), None)
    if config is None:
        return _by_name(folder)
    found = {key: lookup(config, (key, "name")) for key in ("dataset", "network")}
    found["method"] = config.get("method") or lookup(config, ("trainer", "name"))
    for key, value in found.items():
        if not isinstance(value, str):
            raise InputError(f"{folder}: {key}: expected a name in its seeds' {CONFIG}, got {value!r}")
    found["dataset"] = found["dataset"].removesuffix("_oe")
    epochs = lookup(config, ("optimizer", "num_epochs"))
    return found | {"epochs": epochs if isinstance(epochs, int) else None, "outlier_data": learned_from(config)}


def _by_name(folder: Path) -> dict[str, Any]:
    """What was trained, as OpenOOD names its folders."""
    match = RUN.fullmatch(folder.name)
    if match is None:
        raise InputError(
            f"{folder}: nobody knows what was trained; expected a {CONFIG} in the folder of a seed, or a name like "
            "OpenOOD's: cifar10_resnet18_32x32_base_e100_lr0.1_default"
        )
    dataset, auxiliary, network, method, epochs = match.groups()
    found = {"dataset": dataset, "network": network, "method": method, "epochs": int(epochs)}
    return found | {"outlier_data": "auxiliary images" if auxiliary else "none"}


def _metrics(path: Path, seeds: int, full: bool) -> dict[str, float]:
    """The metrics of a file: means, and sample standard deviations, where it has those of the seeds as a population."""
    cells = _read(path)
    found = dict[str, float]()

    def add(key: str, row: str, column: str) -> None:
        found[key], spread = cells[row][column]
        found[f"{key}_std"] = spread * math.sqrt(seeds / (seeds - 1)) if seeds > 1 else math.nan

    for kind, (file, column, _) in KINDS.items():
        if file == ("fsood.csv" if full else "ood.csv"):
            for group, name in SHORT.items():
                add(f"{name}{kind}", group, column)
    if not full:
        add("id_acc", "nearood", "ACC")
        found |= {f"auroc_{name}": row["AUROC"][0] for name, row in cells.items() if name not in SHORT}
    return found


def _read(path: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """The cells (mean, deviation) of a file, by row and column."""
    check_file(path, REMEDY, 1 << 20)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected the CSV of eval_ood.py: {error}; {REMEDY}") from error
    if header != COLUMNS:
        raise InputError(f"{path}: expected the columns {', '.join(COLUMNS[1:])}, got {', '.join(header)}; {REMEDY}")
    found = {}
    for row in rows:
        if len(row) != len(COLUMNS):
            raise InputError(f"{path}: row {row[:1]}: expected {len(COLUMNS)} cells, got {len(row)}; {REMEDY}")
        found[row[0]] = {column: _cell(path, row[0], column, text) for column, text in zip(COLUMNS[1:], row[1:])}
    if missing := [name for name in SHORT if name not in found]:
        raise InputError(f"{path}: row {missing[0]} is missing; {REMEDY}")
    return found


def _cell(path: Path, row: str, column: str, text: str) -> tuple[float, float]:
    match = CELL.fullmatch(text)
    if match is None or not (0 <= float(match[1]) <= 100 or column == "ACC"):
        raise InputError(
            f"{path}: row {row}, column {column}: expected 'mean ± std' in percent, got {text!r}; {REMEDY}"
        )
    return float(match[1]), float(match[2])
