"""Runs to tables, the HTML report and a submission: one row per run, then mean and standard deviation over seeds."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from openood_dream import significance
from openood_dream.config import Config, InputError, OutlierSettings, shipped_configs
from openood_dream.store import read_record, sha256, write_text

# Our name of a metric: the file, row and column where a run has it. ACC is the ID accuracy, the same in every row.
METRICS = {
    "near_auroc": ("ood.csv", "nearood", "AUROC"),
    "far_auroc": ("ood.csv", "farood", "AUROC"),
    "near_fpr95": ("ood.csv", "nearood", "FPR@95"),
    "far_fpr95": ("ood.csv", "farood", "FPR@95"),
    "id_acc": ("ood.csv", "nearood", "ACC"),
}
SPECTRUM = {  # where the data have a group csid
    "near_fs_auroc": ("fsood.csv", "nearood", "AUROC"),
    "far_fs_auroc": ("fsood.csv", "farood", "AUROC"),
    "csid_acc": ("csid.csv", "csid", "ACC"),
}
HEADERS = {
    "method": "Training",
    "postprocessor": "Postprocessor",
    "near_auroc": "Near-OOD AUROC",
    "far_auroc": "Far-OOD AUROC",
    "near_fpr95": "Near-OOD FPR@95",
    "far_fpr95": "Far-OOD FPR@95",
    "near_fs_auroc": "Near-FSOOD AUROC",
    "far_fs_auroc": "Far-FSOOD AUROC",
    "id_acc": "ID Accuracy",
    "csid_acc": "csID Accuracy",
    "seeds": "Seeds",
    "outlier_data": "Outlier Data",
    "network": "Model Arch.",
    "notes": "Additional Description",
}
COLUMNS = [
    *(key for key in HEADERS if key not in SPECTRUM),
    *(f"{metric}_std" for metric in METRICS),
    *(f"{metric}_{bound}" for metric in METRICS for bound in ("low", "high")),
    *("gain_over_base", "p_base", "p_best", "published"),
]
HASHES = {"run": "Training", "checkpoint": "Checkpoint (SHA-256)", "evaluation": "Evaluation"}
AVERAGES = {"auroc": "AUROC", "fpr95": "FPR@95"}  # of a published mean over sets that are no near- and far-OOD groups
BASE = "base"  # the method that others are compared with
BETTER, WORSE, AS_GOOD = "▲", "▼", "≈"
OOD_ROWS = ("nearood", "farood")
ALONE = ("base", "vos", "npos", "frl")  # trainers that learn from ID images alone, whatever dataset.oe says
# The keys of a run's config that tell it from others; the column is the key's first word.
RUN_KEYS = ("method", "seed", "postprocessor.name", "network.name", "dataset.name")


class _RunLoader(yaml.SafeLoader):
    """Reads OpenOOD's config.yml, whose Config objects are dumped with Python tags, as plain dicts; runs nothing."""


_RunLoader.add_multi_constructor(
    "tag:yaml.org,2002:python/object/new:",
    lambda loader, _, node: loader.construct_mapping(node, deep=True).get("dictitems", {}),
)


def collect(run_dirs: Sequence[Path]) -> pd.DataFrame:
    """One row per run (method, seed, postprocessor) with an `ood.csv` anywhere beneath the folders, metrics in percent.

    The AUROC of each OOD set is in `auroc_<set>`, the accuracy on each covariate-shifted set in `acc_<set>`. OpenOOD
    appends to ood.csv, so a data set's last row counts, and has full-spectrum runs of their own, which are joined to the
    others. Raises InputError for a folder without runs, a malformed file, or two runs that claim to be the same.
    """
    files: dict[Path, None] = {}
    for folder in map(Path, run_dirs):
        found = sorted(folder.rglob("ood.csv"))
        if not found:
            raise InputError(f"{folder}: no ood.csv beneath it; expected a folder with evaluated runs")
        files |= dict.fromkeys(path.resolve() for path in found)
    plain, spectrum = [], []
    for path in files:
        run = _read_run(path)
        (spectrum if "near_auroc" not in run else plain).append(run)
    for of in plain, spectrum:
        _no_twins(of)
    by_identity = {_identity(run): run for run in plain}
    for run in spectrum:
        if _identity(run) not in by_identity:
            raise InputError(f"{run['path']}: a full-spectrum run alone; give the run of ood_scheme ood with it")
        own = by_identity[_identity(run)]
        own |= {key: value for key, value in run.items() if key not in own}
    return pd.DataFrame(plain).astype({"epochs": "Int64"})


def _identity(run: dict[str, Any]) -> tuple:
    return tuple(run[key.partition(".")[0]] for key in RUN_KEYS)


def _no_twins(runs: list[dict[str, Any]]) -> None:
    seen: dict[tuple, dict[str, Any]] = {}
    for run in runs:
        other = seen.setdefault(_identity(run), run)
        if other is not run:
            what = ", ".join(f"{key.partition('.')[0]} {value}" for key, value in zip(RUN_KEYS, _identity(run)))
            raise InputError(f"{other['path']} and {run['path']} are all {what}; give only one of them")


def table(
    runs: pd.DataFrame,
    allow_mixed: bool = False,
    sort: str = "near_auroc",
    failures: Sequence[dict[str, Any]] = (),
    published: bool = False,
) -> pd.DataFrame:
    """Mean and sample standard deviation (NaN for one seed) over seeds, the best by `sort` first; columns COLUMNS.

    Where the runs have their scores: `<metric>_low` and `_high`, a bootstrap 95 % interval over the test images; `p_base`
    and `p_best`, two-sided p-values against the base method (with the same postprocessor, else its best) and against the
    best row (which has none), by paired bootstrap of the mean near-OOD AUROC over seeds; `gain_over_base`, the difference in it. With
    `published`, the numbers of published.yml for the same data set are added. Each of `failures` (method, postprocessor,
    seed, text, ...) is noted in its row.
    Raises InputError for runs of different data sets, networks, epochs or OOD sets, unless `allow_mixed`: then such
    runs get rows of their own and the difference is noted.
    """
    others = _published_rows(runs["dataset"].unique()) if published else []
    metrics = metrics_of(runs)
    sets = [name for name in runs if name.startswith("auroc_")]
    epochs = ["unknown" if pd.isna(number) else str(number) for number in runs["epochs"]]
    ood_sets = [" ".join(n.removeprefix("auroc_") for n in sets if pd.notna(run[n])) for _, run in runs.iterrows()]
    runs = runs.assign(epochs=epochs, **{"OOD sets": ood_sets})
    differing = [key for key in ("dataset", "network", "epochs", "OOD sets") if runs[key].nunique() > 1]
    if differing and not allow_mixed:
        values = " and ".join(f"{key} ({', '.join(sorted(runs[key].unique()))})" for key in differing)
        raise InputError(
            f"the runs differ in {values}; give runs that agree, or --mixed for rows that cannot be compared"
        )
    noted = [key for key in differing if key != "network"]
    by = list(dict.fromkeys(["method", "postprocessor", "outlier_data", "network", "dataset", *noted]))
    all_seeds = runs.groupby("dataset")["seed"].nunique()
    resampled = _resampled(runs)
    rows, draws = [], []
    for values, group in runs.groupby(by):
        row = dict(zip(by, values)) | {"seeds": group["seed"].nunique(), "published": False}
        row |= group[metrics].mean().to_dict() | group[metrics].std().add_suffix("_std").to_dict()
        wanted, notes = all_seeds[row["dataset"]], [f"{key} {row[key]}" for key in noted]
        notes += [f"fewer seeds ({row['seeds']} of {wanted})"] if row["seeds"] < wanted else []
        failed = [
            one for one in failures if (one["method"], one["postprocessor"]) == (row["method"], row["postprocessor"])
        ]
        rows.append(
            row | {"notes": "; ".join([*notes, *(f"seed {one['seed']} failed: {one['text']}" for one in failed)])}
        )
        draws.append(_mean_draws([resampled[path] for path in group["path"]]))
    frame = pd.DataFrame(rows, index=range(len(rows)))
    numbers = [*metrics, *(f"{metric}_std" for metric in metrics)]
    frame[numbers] = frame[numbers].round(10)  # less than that is noise of the summation
    frame = frame.join(_statistics(frame, draws, ["dataset", *noted]))
    more = [*_failed_rows(frame, failures), *others]
    frame = pd.concat([frame, pd.DataFrame(more)]) if more else frame
    columns = [*COLUMNS, *(f"{key}{end}" for key in metrics if key in SPECTRUM for end in ("", "_std"))]
    frame = frame.reindex(columns=columns).astype({"seeds": "Int64", "published": bool})
    return _sorted(frame, sort)


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metrics that a frame of runs or rows has, in the order of the headers."""
    return [key for key in HEADERS if key in (*METRICS, *SPECTRUM) and key in frame]


def _sorted(frame: pd.DataFrame, sort: str) -> pd.DataFrame:
    known = [key for key in HEADERS if key in frame]
    if sort not in known:
        raise InputError(f"sort: no column {sort!r}; expected one of {', '.join(known)}")
    text = not pd.api.types.is_numeric_dtype(frame[sort])
    ties = {"near_auroc": False, "far_auroc": False, "method": True, "postprocessor": True}
    order = {sort: text or "fpr95" in sort} | {key: up for key, up in ties.items() if key != sort}
    return frame.sort_values(list(order), ascending=list(order.values()), ignore_index=True)


def _resampled(runs: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """By a run's path its metrics in each resample; none where its scores are not all there."""
    from tqdm import tqdm

    found = {}
    for run in tqdm(list(runs.itertuples()), desc="bootstrap", unit="run", leave=False, delay=2):
        groups = {"near": run.near_sets, "far": run.far_sets}
        files = {name: Path(run.path) / "scores" / f"{name}.npz" for name in (run.dataset, *sum(groups.values(), []))}
        found[run.path] = {}
        if all(groups.values()) and all(path.is_file() for path in files.values()):
            known = read_scores(files[run.dataset])
            sides = {group: {name: read_scores(files[name])[1] for name in names} for group, names in groups.items()}
            found[run.path] = significance.draws(run.dataset, known, sides)
    return found


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, confidences and labels (N,) of a scores/<set>.npz; InputError names a file that is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["pred"], file["conf"], file["label"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected scores with pred, conf and label ({error}); score the run again") from None


def _mean_draws(draws: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean over seeds in each resample, of the metrics that all seeds have."""
    shared = set.intersection(*map(set, draws))
    return {metric: np.mean([of[metric] for of in draws], axis=0) for metric in shared}


def _statistics(frame: pd.DataFrame, draws: list[dict[str, np.ndarray]], alike: list[str]) -> pd.DataFrame:
    """Intervals and p-values of the rows, against those that agree in `alike`: what they were tested on, and how."""
    metric, found = "near_auroc", []
    order = [i for i in frame[metric].sort_values(ascending=False).index if metric in draws[i]]
    for index, row in frame.iterrows():
        cells = {}
        for name, values in draws[index].items():
            cells[f"{name}_low"], cells[f"{name}_high"] = significance.interval(values)
        others = [i for i in order if (frame.loc[i, alike] == row[alike]).all()]
        bases = [i for i in others if frame["method"][i] == BASE and frame["network"][i] == row["network"]]
        same = [i for i in bases if frame["postprocessor"][i] == row["postprocessor"]]
        if metric in draws[index]:
            if others[0] != index:
                cells["p_best"] = significance.p_value(draws[others[0]][metric] - draws[index][metric])
            if bases and row["method"] != BASE:
                base = (same or bases)[0]
                cells["gain_over_base"] = row[metric] - frame[metric][base]
                cells["p_base"] = significance.p_value(draws[index][metric] - draws[base][metric])
        found.append(cells)
    return pd.DataFrame(found, index=frame.index)


def _failed_rows(frame: pd.DataFrame, failures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without numbers for methods and postprocessors of which no seed succeeded."""
    there, rows = set(zip(frame["method"], frame["postprocessor"])), {}
    for one in failures:
        key = one["method"], one["postprocessor"]
        if key not in there:
            row = rows.setdefault(key, {k: v for k, v in one.items() if k not in ("seed", "text")} | {"notes": []})
            row |= {"seeds": 0, "published": False}
            row["notes"].append(f"seed {one['seed']} failed: {one['text']}")
    return [row | {"notes": "; ".join(row["notes"])} for row in rows.values()]


def _published_rows(datasets: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of published.yml for these data sets; each says where it was published."""
    path = shipped_configs() / "published.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = []
    for entry in entries:
        if entry["dataset"] in datasets:
            row = {key: value for key, value in entry.items() if key in HEADERS}
            average = entry.get("average")
            notes = [f"published ({entry['source']})"]
            if average:
                numbers = [f"{words} {average[key]:.2f}" for key, words in AVERAGES.items() if key in average]
                notes.append(f"average over {', '.join(average['sets'])}: {', '.join(numbers)}")
            notes += [entry["notes"]] if "notes" in entry else []
            rows.append({"postprocessor": "–", "network": "–", "outlier_data": "–"} | row)
            rows[-1] |= {"notes": "; ".join(notes), "published": True}
    if not rows:
        known = ", ".join(sorted({entry["dataset"] for entry in entries}))
        raise InputError(f"published: no published numbers for {', '.join(datasets)}; there are some for {known}")
    return rows


def render(table: pd.DataFrame, fmt: str) -> str:
    """A table of `table()` as text in one of the formats; raises InputError for another format."""
    renderers = {
        "md": _markdown,
        "csv": lambda table: table.to_csv(index=False),
        "json": lambda table: json.dumps(_rows(table), indent=2, ensure_ascii=False) + "\n",
        "tex": _latex,
        "terminal": _terminal,
    }
    if fmt not in renderers:
        raise InputError(f"format {fmt!r}: expected one of {', '.join(renderers)}")
    return renderers[fmt](table)


def report(
    out: Path,
    *,
    runs: pd.DataFrame,
    table: pd.DataFrame,
    stages: list[dict],
    settings: dict,
    versions: dict,
    figures: dict[str, bytes],
    notes: list[str],
    judged: dict[str, pd.DataFrame] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Writes one self-contained report.html into the folder `out` (or to `out` itself if it ends in .html).

    `table` is that of `runs`. `stages` are dicts of name, seconds, hash (absent: a dash). `figures` maps
    "<kind>" or "<kind>: <of what>" to PNG; the template has an explanation for each kind. Without `commands`, this
    process's is shown. "mistakes: <method>" are those of report.mistake_grid. `judged` maps image sets to the
    tables of quality.table.
    """
    import jinja2

    out = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    shown = _shown(table)
    listed = runs.assign(path=[os.path.relpath(p, out.parent.resolve()) for p in runs["path"]])
    values = {
        "headers": {key: HEADERS[key] for key in shown},
        "metrics": metrics_of(table),
        "rows": _rows(table),
        "shown": _rows(shown),
        "ranks": _ranks(table),
        "descending": table["near_auroc"].dropna().is_monotonic_decreasing,
        "legend": LEGEND if any(_marks(table)) else "",
        "stages": stages,
        "versions": versions,
        "notes": notes,
        "runs": _rows(listed.drop(columns=["near_sets", "far_sets"])),
        "sets": {name.removeprefix("auroc_"): name for name in runs if name.startswith("auroc_")},
        "shifted": {name.removeprefix("acc_"): name for name in runs if name.startswith("acc_")},
        "per_set": _per_set(runs),
        "judged": {name: (list(frame), _rows(frame)) for name, frame in (judged or {}).items()},
        "hashes": {key: words for key, words in HASHES.items() if key in runs},
        "figures": {name: (png, base64.b64encode(png).decode()) for name, png in figures.items()},
        # JSON turns every kind of mapping, path and number into what safe YAML knows.
        "settings": yaml.safe_dump(json.loads(json.dumps(settings, default=str)), sort_keys=False, allow_unicode=True),
        "commands": list(commands) or [shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
    }
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = page.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    write_text(out, template.render(values))
    return out


def _per_set(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean over seeds of each OOD set's AUROC and each shifted set's accuracy, by method and postprocessor."""
    columns = [name for name in runs if name.startswith(("auroc_", "acc_"))]
    means = runs.groupby(["method", "postprocessor"], as_index=False)[["near_auroc", *columns]].mean()
    return _rows(means.sort_values("near_auroc", ascending=False))


def submit(runs: pd.DataFrame, table: pd.DataFrame, folder: Path) -> Path:
    """Writes what an entry of OpenOOD's leaderboard needs into `folder`: each run's csv files, and issue.md, filled in.

    Published rows are left out. Returns issue.md.
    """
    own = table[~table["published"] & (table["seeds"] > 0)]
    lines = ["Title: [leaderboard] " + ", ".join(own["method"].unique()), ""]
    for number, row in enumerate(own.itertuples(), 1):
        name = re.sub(r"[^\w.-]+", "_", f"{number:02d}_{row.method}_{row.postprocessor}")
        mine = runs[(runs["method"] == row.method) & (runs["postprocessor"] == row.postprocessor)]
        mine = mine[(mine["network"] == row.network) & (mine["outlier_data"] == row.outlier_data)]
        files = []
        for run in mine.itertuples():
            for path in sorted(Path(run.path).glob("*.csv")):
                target = folder / name / f"s{run.seed}_{path.name}"
                write_text(target, path.read_text(encoding="utf-8"))
                files.append(target.relative_to(folder).as_posix())
        epochs = ", ".join(sorted({f"{n} epoch{'s' if n != 1 else ''}" for n in mine["epochs"].dropna()}))
        data = ", ".join(sorted(set(mine["dataset"])))
        said = [data, epochs, f"mean over {row.seeds} seed{'s' if row.seeds > 1 else ''}", row.notes]
        fields = {
            "Training": row.method,
            "Postprocessor": row.postprocessor,
            "Near-OOD AUROC": _percent_text(row.near_auroc, row.near_auroc_std),
            "Far-OOD AUROC": _percent_text(row.far_auroc, row.far_auroc_std),
            "ID Accuracy": _percent_text(row.id_acc, row.id_acc_std),
            "Outlier Data": row.outlier_data,
            "Model Arch.": row.network,
            "Additional Description": ", ".join(filter(None, said)),
            "Link": "(where the method is described: fill in)",
            "Results": ", ".join(files),
        }
        lines += [f"## {number}", "", *(f"- **{key}**: {value}" for key, value in fields.items()), ""]
    write_text(folder / "leaderboard.csv", own.to_csv(index=False))
    write_text(folder / "issue.md", "\n".join(lines))
    return folder / "issue.md"


def _percent_text(mean: float, std: float) -> str:
    return "–" if pd.isna(mean) else f"{mean:.2f}" + (f" ± {std:.2f}" if pd.notna(std) else "")


def _read_run(path: Path) -> dict[str, Any]:
    config_path = path.with_name("config.yml")
    config = _read_config(config_path)
    trained, run = _training_config(config), {}
    trained.method = trained.method or trained.at("trainer.name")
    for key in RUN_KEYS:
        name, source = key.partition(".")[0], trained if key in ("method", "seed") else config
        run[name] = source.at(key)
        kind, wanted = (int, "an integer") if key == "seed" else (str, "a name")
        if not isinstance(run[name], kind):
            raise InputError(f"{config_path}: {key}: expected {wanted}, got {run[name]!r}")
    scores, epochs = _read_scores(path, OOD_ROWS), trained.at("optimizer.num_epochs")
    full = "fsood" in (config.at("evaluator.ood_scheme"), config.at("evaluator.name"))
    files = {"fsood.csv" if full else "ood.csv": scores}
    for name, rows in () if full else (("fsood.csv", OOD_ROWS), ("csid.csv", ("csid",))):
        if path.with_name(name).is_file():
            files[name] = _read_scores(path.with_name(name), rows)
    metrics = METRICS | SPECTRUM
    run |= {key: files[file][row][column] for key, (file, row, column) in metrics.items() if file in files}
    if not full:
        run |= {f"auroc_{name}": row["AUROC"] for name, row in scores.items() if name not in OOD_ROWS}
    run |= {f"acc_{name}": row["ACC"] for name, row in files.get("csid.csv", {}).items() if name != "csid"}
    run |= {f"{group}_sets": config.at(f"ood_dataset.{group}ood.datasets") or [] for group in ("near", "far")}
    run["epochs"] = epochs if isinstance(epochs, int) else None
    return run | _hashes(path.parent) | {"outlier_data": outlier_data(config, trained), "path": str(path.parent)}


def _hashes(folder: Path) -> dict[str, str]:
    """What names the inputs of a run's training and evaluation, where it was ours: HASHES."""
    files = {"run": folder.parent / "train.json", "evaluation": folder / "evaluate.json"}
    records = {key: read_record(path) for key, path in files.items() if path.is_file()}
    found = {key: record["hash"] for key, record in records.items()}
    scored = records["evaluation"]["inputs"].get("run") if "evaluation" in records else None
    if scored is not None and scored != found.get("run", scored):
        raise InputError(f"{folder}: scores of a network that was trained again since; delete them or score it again")
    checkpoint = folder.parent / "best.ckpt"
    return found | ({"checkpoint": sha256(checkpoint)[:16]} if checkpoint.is_file() else {})


def _read_config(path: Path) -> Config:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_RunLoader)  # noqa: S506 # nosec B506 (it is a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a run's config in YAML: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a run's config, got {type(config).__name__}")
    return Config(config)


def _training_config(config: Config) -> Config:
    """The config that knows how the network was trained; OpenOOD's test runs have it beside their checkpoint."""
    checkpoint = config.at("network.checkpoint")
    if config.method or config.at("trainer.name") or not (checkpoint and isinstance(checkpoint, str)):
        return config
    beside = Path(checkpoint).with_name("config.yml")
    return _read_config(beside) if beside.is_file() else config


def outlier_data(config: Config, trained: Config) -> str:
    """What a network learned from besides ID images, by the configs of its evaluation and of its training."""
    imglist, trainer = trained.at("dataset.oe.imglist_pth"), trained.at("trainer.name")
    if config.outlier_data:
        return str(config.outlier_data)
    if trainer == "oal":
        return "imagined (latents)"
    if not imglist or trainer in ALONE:
        return "none"
    if imglist == "imagined":
        return f"imagined ({trained.at('dream.outliers.method', OutlierSettings().method)})"
    return Path(imglist).stem


def _read_scores(path: Path, rows: Sequence[str]) -> dict[str, dict[str, float]]:
    """The last row of each data set in ood.csv or its like: {dataset: {column: percent}}; `rows` must be there."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found, columns = {row.get("dataset"): row for row in reader}, reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected OpenOOD's CSV: {error}") from error
    needed = ["dataset", *dict.fromkeys(column for *_, column in METRICS.values())]
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


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain Python values, with None for what is missing."""
    return json.loads(frame.to_json(orient="records", double_precision=12))


def _shown(table: pd.DataFrame, intervals: bool = False) -> pd.DataFrame:
    """The cells as people read them: two decimals, the standard deviation where there is one, marks, dashes for nothing.

    With `intervals`, the bootstrap interval too.
    """
    shown = table[[key for key in HEADERS if key in table]].astype("string").fillna("–").astype(object)
    shown["method"] = [f"{row.method} (published)" if row.published else row.method for row in table.itertuples()]
    marks = _marks(table)
    for metric in metrics_of(table):
        cells = []
        for index, row in table.iterrows():
            text = _percent_text(row[metric], row[f"{metric}_std"])
            if intervals and pd.notna(row.get(f"{metric}_low")):
                text += f" [{row[f'{metric}_low']:.2f}, {row[f'{metric}_high']:.2f}]"
            cells.append(f"{text} {marks[index]}" if marks[index] and metric == "near_auroc" else text)
        shown[metric] = cells
    return shown


def _marks(table: pd.DataFrame) -> list[str]:
    """For each row whether it is significantly better or worse than base, and whether it is as good as the best."""
    marks = []
    for row in table.itertuples():
        sure = pd.notna(row.p_base) and row.p_base < significance.LEVEL
        mark = (BETTER if row.gain_over_base > 0 else WORSE) if sure else ""
        level = pd.notna(row.p_best) and row.p_best >= significance.LEVEL
        marks.append(mark + (AS_GOOD if level else ""))
    return marks


LEGEND = (
    f"{BETTER} {WORSE} significantly better, worse than {BASE}; {AS_GOOD} not significantly different from the best "
    f"(paired bootstrap over test images, p < {significance.LEVEL})"
)


def _narrowed(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The shown cells without the columns that can be said in words, and those words."""
    own = table[~table["published"].astype(bool)]
    networks, seeds = table["network"].unique().tolist(), own["seeds"].max()
    facts = ["one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"]
    facts += networks if len(networks) == 1 else []
    facts += [LEGEND] if any(_marks(table)) else []
    facts += [f"{notes}: {_names(rows)}" for notes, rows in table.groupby("notes", sort=False) if notes]
    said = ["seeds", "notes", "network"] if len(networks) == 1 else ["seeds", "notes"]
    return _shown(table).drop(columns=said), "; ".join(facts)


def _names(rows: pd.DataFrame) -> str:
    """The methods of some rows of a table, each with the postprocessors that it has there."""
    own = rows.groupby("method", sort=False)["postprocessor"].agg(" ".join)
    return ", ".join(f"{method} ({postprocessors})" for method, postprocessors in own.items())


def _ranks(table: pd.DataFrame) -> dict[str, list[int]]:
    """For each metric the rank of each row, 1 the best, 0 without a number; rows that show the same share a rank."""
    metrics = metrics_of(table)
    rank = {metric: table[metric].round(2).rank(method="dense", ascending="fpr95" in metric) for metric in metrics}
    return {metric: ranks.fillna(0).astype(int).tolist() for metric, ranks in rank.items()}


def _markdown(table: pd.DataFrame) -> str:
    shown = _shown(table, intervals=True)
    cells = shown.map(lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;"))
    rule = ["---:" if key in (*metrics_of(table), "seeds") else "---" for key in shown]
    lines = [[HEADERS[key] for key in shown], rule, *cells.to_numpy().tolist()]
    legend = f"\n{LEGEND}; in brackets bootstrap 95 % intervals over test images.\n" if any(_marks(table)) else ""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + legend


TEX = {" ± ": r" $\pm$ ", BETTER: r"$^{+}$", WORSE: r"$^{-}$", AS_GOOD: r"$^{\approx}$", "–": "--"}


def _latex(table: pd.DataFrame) -> str:
    (shown, facts), ranks, marks = _narrowed(table), _ranks(table), {1: "textbf:--rwrap", 2: "underline:--rwrap"}
    style = shown.style.hide(axis="index").format(escape="latex")
    style = style.apply(lambda column: [marks.get(rank) for rank in ranks[column.name]], subset=metrics_of(table))
    style = style.relabel_index([HEADERS[key] for key in shown], axis="columns")
    align = "".join("r" if key in metrics_of(table) else "l" for key in shown)
    text = style.to_latex(column_format=align, hrules=True)
    for sign, command in TEX.items():
        text = text.replace(sign, command)
    return f"% Needs \\usepackage{{booktabs}}. {' '.join(facts.split())}.\n{text}"


def _terminal(table: pd.DataFrame) -> str:
    from rich import box
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    console, (shown, facts) = Console(), _narrowed(table)
    folded = shown.map(lambda text: text.replace(" (", "\n("))
    short = folded[[key for key in folded if not key.endswith(("fpr95", "fs_auroc"))]]
    stacked = short.map(lambda text: text.replace(" ± ", "\n± "))
    hint = "; for FPR@95, widen the terminal or choose another format"
    # The first layout that fits is taken, and the last one in any case.
    for cells, words in ((shown, facts), (folded, facts), (short, facts + hint), (stacked, facts + hint)):
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
        for key in cells:
            header = HEADERS[key].replace(" ", "\n").replace("Postp", "Post-\np")
            view.add_column(header, justify="right" if key in metrics_of(table) else "left", overflow="fold")
        for row in cells.to_numpy().tolist():
            view.add_row(*map(Text, row))  # Text, so that no name is taken for markup
        page = Group(view, Text(words, style="dim"))
        if console.measure(view, options=console.options.update_width(9999)).maximum <= console.width:
            break
    with console.capture() as capture:
        console.print(page)
    return capture.get()
