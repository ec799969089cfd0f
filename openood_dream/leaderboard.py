"""Runs to tables and the HTML report: one row per run, then mean and standard deviation over seeds."""

from __future__ import annotations

import base64
import csv
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from openood_dream.config import Config, InputError, OutlierSettings
from openood_dream.store import write_text

# Our name of a metric: where OpenOOD's ood.csv has it. ACC is the ID accuracy, the same in every row.
METRICS = {
    "near_auroc": ("nearood", "AUROC"),
    "far_auroc": ("farood", "AUROC"),
    "near_fpr95": ("nearood", "FPR@95"),
    "far_fpr95": ("farood", "FPR@95"),
    "id_acc": ("nearood", "ACC"),
}
HEADERS = {
    "method": "Training",
    "postprocessor": "Postprocessor",
    "near_auroc": "Near-OOD AUROC",
    "far_auroc": "Far-OOD AUROC",
    "near_fpr95": "Near-OOD FPR@95",
    "far_fpr95": "Far-OOD FPR@95",
    "id_acc": "ID Accuracy",
    "seeds": "Seeds",
    "outlier_data": "Outlier Data",
    "network": "Model Arch.",
    "notes": "Additional Description",
}
COLUMNS = [*HEADERS, *(f"{metric}_std" for metric in METRICS)]
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

    The AUROC of each OOD set is in `auroc_<set>`. OpenOOD appends to ood.csv, so a data set's last row counts. Raises
    InputError for a folder without runs, a malformed file, or two runs that claim to be the same.
    """
    files: dict[Path, None] = {}
    for folder in map(Path, run_dirs):
        found = sorted(folder.rglob("ood.csv"))
        if not found:
            raise InputError(f"{folder}: no ood.csv beneath it; expected a folder with evaluated runs")
        files |= dict.fromkeys(path.resolve() for path in found)
    runs = pd.DataFrame([_read_run(path) for path in files]).astype({"epochs": "Int64"})
    identity = [key.partition(".")[0] for key in RUN_KEYS]
    for values, same in runs[runs.duplicated(identity, keep=False)].groupby(identity):
        what = ", ".join(f"{key} {value}" for key, value in zip(identity, values))
        raise InputError(f"{' and '.join(same['path'])} are all {what}; give only one of them")
    return runs


def table(runs: pd.DataFrame, allow_mixed: bool = False) -> pd.DataFrame:
    """Mean and sample standard deviation (NaN for one seed) over seeds, best near-OOD AUROC first; columns COLUMNS.

    Raises InputError for runs of different data sets, networks, epochs or OOD sets, unless `allow_mixed`: then such
    runs get rows of their own and the difference is noted.
    """
    sets = [name for name in runs if name.startswith("auroc_")]
    epochs = ["unknown" if pd.isna(number) else str(number) for number in runs["epochs"]]
    ood_sets = [" ".join(n.removeprefix("auroc_") for n in sets if pd.notna(run[n])) for _, run in runs.iterrows()]
    runs = runs.assign(epochs=epochs, **{"OOD sets": ood_sets})
    differing = [key for key in ("dataset", "network", "epochs", "OOD sets") if runs[key].nunique() > 1]
    if differing and not allow_mixed:
        values = " and ".join(f"{key} ({', '.join(sorted(runs[key].unique()))})" for key in differing)
        raise InputError(f"the runs differ in {values}; give runs that agree, so that the rows can be compared")
    noted = [key for key in differing if key != "network"]
    by = dict.fromkeys(["method", "postprocessor", "outlier_data", "network", "dataset", *noted])
    groups, all_seeds = runs.groupby(list(by)), runs.groupby("dataset")["seed"].nunique()
    metrics = groups[list(METRICS)]
    frame = metrics.mean().join(metrics.std().add_suffix("_std")).round(10)  # less than that is noise of the summation
    frame = frame.join(groups["seed"].nunique().rename("seeds")).reset_index()
    frame["notes"] = ""
    for index, row in frame.iterrows():
        wanted, notes = all_seeds[row["dataset"]], [f"{key} {row[key]}" for key in noted]
        notes += [f"fewer seeds ({row['seeds']} of {wanted})"] if row["seeds"] < wanted else []
        frame.loc[index, "notes"] = "; ".join(notes)
    order = {"near_auroc": False, "far_auroc": False, "method": True, "postprocessor": True}
    return frame.sort_values(list(order), ascending=list(order.values()), ignore_index=True)[COLUMNS]


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
    stages: list[dict],
    settings: dict,
    versions: dict,
    figures: dict[str, bytes],
    notes: list[str],
    commands: Sequence[str] = (),
    allow_mixed: bool = False,
) -> Path:
    """Writes one self-contained report.html into the folder `out` (or to `out` itself if it ends in .html).

    `stages` are dicts of name, seconds, reused, hash (absent: a dash). `figures` maps "<function of plots.py>" or
    "<function>: <of what>" to PNG; the function chooses the explanation. Without `commands`, this process's is shown.
    Raises InputError as `table` does.
    """
    import jinja2

    out = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    frame = table(runs, allow_mixed)
    given = {"headers": HEADERS, "metrics": METRICS, "stages": stages, "versions": versions, "notes": notes}
    derived = {
        "rows": _rows(frame),
        "shown": _rows(_shown(frame)),
        "ranks": _ranks(frame),
        "runs": _rows(runs.assign(path=[os.path.relpath(p, out.parent.resolve()) for p in runs["path"]])),
        "sets": [name.removeprefix("auroc_") for name in runs if name.startswith("auroc_")],
        "figures": {name: (png, base64.b64encode(png).decode()) for name, png in figures.items()},
        # JSON turns every kind of mapping, path and number into what safe YAML knows.
        "settings": yaml.safe_dump(json.loads(json.dumps(settings, default=str)), sort_keys=False, allow_unicode=True),
        "commands": list(commands) or [shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
    }
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = page.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    write_text(out, template.render(given | derived))
    return out


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
    scores, epochs = _read_scores(path), trained.at("optimizer.num_epochs")
    run |= {metric: scores[name][column] for metric, (name, column) in METRICS.items()}
    run |= {f"auroc_{name}": row["AUROC"] for name, row in scores.items() if name not in ("nearood", "farood")}
    run["epochs"] = epochs if isinstance(epochs, int) else None
    return run | {"outlier_data": _outlier_data(config, trained), "path": str(path.parent)}


def _read_config(path: Path) -> Config:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_RunLoader)  # noqa: S506 (a SafeLoader)
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


def _outlier_data(config: Config, trained: Config) -> str:
    imglist = trained.at("dataset.oe.imglist_pth")
    if config.outlier_data or not imglist:
        return str(config.outlier_data or "none")
    if imglist == "imagined":
        return f"imagined ({trained.at('dream.outliers.method', OutlierSettings().method)})"
    return Path(imglist).stem


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The last row of each data set in ood.csv: {dataset: {column: percent}}."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = {row.get("dataset"): row for row in reader}, reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected OpenOOD's CSV: {error}") from error
    needed = ["dataset", *dict.fromkeys(column for _, column in METRICS.values())]
    if missing := [column for column in needed if column not in columns]:
        raise InputError(f"{path}: column {missing[0]} is missing; expected at least {', '.join(needed)}")
    if missing := [name for name in ("nearood", "farood") if name not in rows]:
        raise InputError(f"{path}: row {missing[0]} is missing; the evaluation did not finish, run it again")
    return {name: {c: _percent(path, name, c, row[c]) for c in needed[1:]} for name, row in rows.items()}


def _percent(path: Path, row: str, column: str, text: str | None) -> float:
    if column == "ACC" and text in ("nan", "-"):  # a network that knows no classes
        return float("nan")
    value = pd.to_numeric(text or "", errors="coerce")
    if not 0 <= value <= 100:
        raise InputError(f"{path}: row {row}, column {column}: expected a percentage from 0 to 100, got {text!r}")
    return float(value)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain Python values, with None for what is missing."""
    return json.loads(frame.to_json(orient="records", double_precision=12))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The cells as people read them: two decimals, and the standard deviation where there is one."""
    shown = table[list(HEADERS)].astype(str)
    for metric in METRICS:
        pairs = zip(table[metric], table[f"{metric}_std"])
        shown[metric] = [
            "–" if pd.isna(mean) else f"{mean:.2f}" + (f" ± {std:.2f}" if pd.notna(std) else "") for mean, std in pairs
        ]
    return shown


def _narrowed(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The shown cells without the columns that can be said in words, and those words."""
    networks, seeds = table["network"].unique().tolist(), table["seeds"].max()
    facts = ["one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"]
    facts += networks if len(networks) == 1 else []
    facts += [f"{row.method}, {row.postprocessor}: {row.notes}" for row in table.itertuples() if row.notes]
    return _shown(table).drop(columns=["seeds", "notes", *["network"][: len(networks) == 1]]), "; ".join(facts)


def _ranks(table: pd.DataFrame) -> dict[str, list[int]]:
    """For each metric the rank of each row, 1 the best, 0 without a number; rows that show the same share a rank."""
    rank = {metric: table[metric].round(2).rank(method="dense", ascending="fpr95" in metric) for metric in METRICS}
    return {metric: ranks.fillna(0).astype(int).tolist() for metric, ranks in rank.items()}


def _markdown(table: pd.DataFrame) -> str:
    cells = _shown(table).map(lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;"))
    rule = ["---:" if key in (*METRICS, "seeds") else "---" for key in HEADERS]
    lines = [list(HEADERS.values()), rule, *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(table: pd.DataFrame) -> str:
    (shown, facts), ranks, marks = _narrowed(table), _ranks(table), {1: "textbf:--rwrap", 2: "underline:--rwrap"}
    style = shown.style.hide(axis="index").format(escape="latex")
    style = style.apply(lambda column: [marks.get(rank) for rank in ranks[column.name]], subset=list(METRICS))
    style = style.relabel_index([HEADERS[key] for key in shown], axis="columns")
    align = "".join("r" if key in METRICS else "l" for key in shown)
    text = style.to_latex(column_format=align, hrules=True).replace("±", r"$\pm$")
    return f"% Needs \\usepackage{{booktabs}}. {' '.join(facts.split())}.\n{text}"


def _terminal(table: pd.DataFrame) -> str:
    from rich import box
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    console, (shown, facts) = Console(), _narrowed(table)
    folded = shown.map(lambda text: text.replace(" (", "\n("))
    short = folded[[key for key in folded if not key.endswith("fpr95")]]
    stacked = short.map(lambda text: text.replace(" ± ", "\n± "))
    hint = "; for FPR@95, widen the terminal or choose another format"
    # The first layout that fits is taken, and the last one in any case.
    for cells, words in ((shown, facts), (folded, facts), (short, facts + hint), (stacked, facts + hint)):
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
        for key in cells:
            header = HEADERS[key].replace(" ", "\n").replace("Postp", "Post-\np")
            view.add_column(header, justify="right" if key in METRICS else "left", overflow="fold")
        for row in cells.to_numpy().tolist():
            view.add_row(*map(Text, row))  # Text, so that no name is taken for markup
        page = Group(view, Text(words, style="dim"))
        if console.measure(view, options=console.options.update_width(9999)).maximum <= console.width:
            break
    with console.capture() as capture:
        console.print(page)
    return capture.get()
