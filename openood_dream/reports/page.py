"""The HTML report: tables, figures and settings in one file that needs nothing but itself."""

from __future__ import annotations

import base64
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from openood_dream.reports.columns import header, headers, metrics_of, primary
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
        figures: PNG by "<kind>" or "<kind>: <of what>"; the template explains each kind.
        notes: sentences above the tables.
        judged: dream.quality.quality_table of each image set, by its name.
        commands: how to make it again; without any, this process's own command line.

    Returns:
        The path of the page.
    """
    out = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    shown = cells(table)
    listed = runs.assign(path=[os.path.relpath(p, out.parent.resolve()) for p in runs["path"]])
    values = {
        "headers": headers(table),
        "primary": primary(table),
        "task": header(primary(table)).removesuffix(" AUROC"),
        "metrics": metrics_of(table),
        "rows": plain_rows(table),
        "shown": plain_rows(shown),
        "ranks": ranks(table),
        "descending": table[primary(table)].dropna().is_monotonic_decreasing,
        "legend": LEGEND if any(marks(table)) else "",
        "stages": stages,
        "versions": versions or {},
        "notes": notes,
        "runs": plain_rows(listed.drop(columns=["groups", "settings", "imagined", "training"])),
        "sets": {name.removeprefix("auroc_"): name for name in runs.columns.tolist() if name.startswith("auroc_")},
        "shifted": {name.removeprefix("acc_"): name for name in runs.columns.tolist() if name.startswith("acc_")},
        "per_set": _per_set(runs),
        "judged": {name: (list(frame), plain_rows(frame)) for name, frame in (judged or {}).items()},
        "hashes": {key: words for key, words in HASHES.items() if key in runs},
        "figures": {name: (png, base64.b64encode(png).decode()) for name, png in (figures or {}).items()},
        "settings": _as_yaml(settings or {}),
        "commands": list(commands) or [shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
    }
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = page.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    write_text(out, template.render(values))
    return out


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
