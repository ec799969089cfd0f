"""The HTML report: tables, figures and settings in one file that needs nothing but itself."""

from __future__ import annotations

import base64
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from openood_dream.evaluators import significance
from openood_dream.reports import gains
from openood_dream.reports.columns import header, headers, metrics_of, primary
from openood_dream.reports.gains import Comparison, Cost, Gain
from openood_dream.reports.render import LEGEND, cells, marks, plain_rows, ranks
from openood_dream.reports.variants import ROW, VARIANT, variants
from openood_dream.store.files import write_text

HASHES = {"run": "Training", "checkpoint": "Checkpoint (SHA-256)", "evaluation": "Evaluation"}


def report(
    out: Path,
    *,
    runs: pd.DataFrame,
    table: pd.DataFrame,
    stages: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    figures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
    judged: Mapping[str, pd.DataFrame] | None = None,
    costs: Mapping[str, Cost] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Writes one self-contained page.

    Args:
        out: a folder, which gets a report.html, or a file that ends in .html.
        runs: runs.collect's rows.
        table: table.table of these runs.
        stages: how long each stage took: name, seconds, hash (absent: a dash).
        settings: the config to show.
        versions: packages and devices by name.
        figures: PNG by "<kind>" or "<kind>: <of what>"; the template explains each kind. Those that are a style.Picture
            have another face on dark pages.
        notes: sentences above the tables.
        judged: dream.quality.quality_table of each image set, by its name.
        costs: what each method took.
        commands: how to make it again; without any, this process's own command line.

    Returns:
        The path of the page.
    """
    out = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    answers = gains.comparisons(runs)
    listed = runs.assign(path=[os.path.relpath(p, out.parent.resolve()) for p in runs["path"]])
    values = {
        "answers": answers,
        "verdict": _verdict(answers, costs or {}, primary(table)),
        **_leaderboard(table),
        "stages": stages,
        "versions": versions or {},
        "notes": notes,
        "runs": plain_rows(listed.drop(columns=["groups", "settings", "imagined", "training"])),
        "sets": {name.removeprefix("auroc_"): name for name in runs.columns.tolist() if name.startswith("auroc_")},
        "shifted": {name.removeprefix("acc_"): name for name in runs.columns.tolist() if name.startswith("acc_")},
        "per_set": _per_set(runs),
        "judged": {name: (list(frame), plain_rows(frame)) for name, frame in (judged or {}).items()},
        "hashes": {key: words for key, words in HASHES.items() if key in runs},
        "figures": _by_kind(figures or {}),
        "settings": _as_yaml(settings or {}),
        "commands": list(commands) or [shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
    }
    files = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=files, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    write_text(out, page.get_template("report.html.j2").render(values))
    return out


def _leaderboard(table: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of a leaderboard."""
    return {
        "headers": headers(table),
        "primary": primary(table),
        "task": header(primary(table)).removesuffix(" AUROC"),
        "metrics": metrics_of(table),
        "rows": plain_rows(table),
        "shown": plain_rows(cells(table)),
        "intervals": [{key: _t_interval(row, key) for key in metrics_of(table)} for row in plain_rows(table)],
        "ranks": ranks(table),
        "descending": table[primary(table)].dropna().is_monotonic_decreasing,
        "legend": LEGEND if any(marks(table)) else "",
    }


# -------------------------------------------------------------------------------------------------------- first lines


def _verdict(answers: Sequence[Comparison], costs: Mapping[str, Cost], first: str) -> list[dict[str, Any]]:
    """The table below the first lines: a row per metric, with base's mean and what each method gains, then the costs.

    Args:
        answers: the methods beside base.
        costs: what methods took.
        first: the metric whose row comes first.
    """
    if not answers:
        return []
    wanted = [key for key in answers[0].gains if not key.endswith("fpr95")]
    wanted.sort(key=lambda key: (key != first, key.endswith("_fs_auroc")))  # stable; csID stands before what counts it
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "term": header(key),
            "base": f"{answers[0].gains[key].base:.1f}",
            "cells": [_cell(one, key) for one in answers],
        }
        for key in wanted
    ]
    if gains.BASE in costs and all(one.method in costs for one in answers):
        cells = [{"gain": _minutes(costs[one.method]), "interval": "", "chance": "", "better": None} for one in answers]
        rows.append({"key": "cost", "term": "Cost", "base": _minutes(costs[gains.BASE]), "cells": cells})
    return rows


def _cell(one: Comparison, key: str) -> dict[str, Any]:
    """A gain as people read it; a dash where the method has no such metric."""
    gain = one.gains.get(key)
    if gain is None:
        return {"gain": "–", "interval": "", "chance": "", "better": None}
    p = "" if math.isnan(gain.p) else "p < 0.001" if gain.p < 0.001 else f"p = {gain.p:.2g}"
    return {"gain": signed(gain.mean, gain.decimals), "interval": _bounds(gain), "chance": p, "better": gain.better}


def _bounds(gain: Gain) -> str:
    """The interval of a gain; "" where one seed has none."""
    if math.isnan(gain.halfwidth):
        return ""
    ends = (gain.mean - gain.halfwidth, gain.mean + gain.halfwidth)
    return " to ".join(signed(end, gain.decimals) for end in ends)


def signed(number: float, decimals: int) -> str:
    """A difference with its sign.

    Args:
        number: the difference.
        decimals: how many are shown.
    """
    text = f"{number:+.{decimals}f}"
    return text.replace("-", "\u2212") if float(text) else text[1:]


def _minutes(cost: Cost) -> str:
    training = f"{cost.training / 60:.1f} min to train a seed"
    return f"{cost.imagining / 60:.1f} min to imagine, once; {training}" if cost.imagining else training


def _t_interval(row: Mapping[str, Any], metric: str) -> str:
    """The 95 % t-interval of a row's mean over seeds, within 0 and 100; "" where there is none."""
    mean, deviation, seeds = row[metric], row.get(f"{metric}_std"), row["seeds"]
    if mean is None or not deviation or not seeds or seeds < 2:  # equal values say nothing of how others would differ
        return ""
    halfwidth = significance.t_halfwidth(deviation, seeds)
    ends = (max(0.0, mean - halfwidth), min(100.0, mean + halfwidth))
    return " to ".join(f"{end:.{gains.decimals(halfwidth)}f}" for end in ends)


# ----------------------------------------------------------------------------------------------------------- the rest


def _by_kind(figures: Mapping[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """The figures of each kind: name, PNG in base64, and PNG for dark pages."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, png in figures.items():
        light, dark = (base64.b64encode(face).decode() for face in (png, getattr(png, "dark", b"")))
        found.setdefault(name.partition(":")[0], []).append({"name": name, "light": light, "dark": dark})
    return found


def _as_yaml(settings: Mapping[str, Any]) -> str:
    # JSON turns every kind of mapping, path and number into what safe YAML knows.
    plain = json.loads(json.dumps(settings, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _per_set(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean over seeds of each OOD set's AUROC and each shifted set's accuracy, by the rows of the table."""
    columns = [name for name in runs.columns.tolist() if name.startswith(("auroc_", "acc_"))]
    runs = runs.assign(**{VARIANT: variants(runs)[0]})
    first = primary(runs)
    means = runs.groupby([*ROW, VARIANT], as_index=False)[[first, *columns]].mean()
    return plain_rows(means.sort_values(first, ascending=False))
