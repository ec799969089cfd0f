"""An entry of OpenOOD's leaderboard: the text of the issue, filled in, and the csv files that it attaches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from openood_dream.errors import printable
from openood_dream.reports.columns import header, is_spectrum, metrics_of
from openood_dream.reports.render import percent_text, render
from openood_dream.reports.variants import ROW, VARIANT, variants
from openood_dream.store.files import write_text


def submit(runs: pd.DataFrame, table: pd.DataFrame, folder: Path) -> Path:
    """Writes what an entry of OpenOOD's leaderboard needs: each run's csv files, leaderboard.csv and issue.md.

    Args:
        runs: runs.collect's rows.
        table: table.table of these runs; published rows and those without a finished run are left out.
        folder: where the files are written.

    Returns:
        The path of issue.md.
    """
    own = table[~table["published"] & (table["seeds"] > 0)]
    runs = runs.assign(**{VARIANT: variants(runs)[0]})
    keys = [key for key in (*ROW, VARIANT) if key in own]
    metrics = [key for key in metrics_of(own) if "fpr95" not in key and not is_spectrum(key)]
    lines = ["Title: [leaderboard] " + printable(", ".join(own["method"].unique())), ""]
    for number, row in enumerate(own.itertuples(), 1):
        mine = runs[(runs[keys] == [getattr(row, key) for key in keys]).all(axis=1)]
        name = re.sub(r"[^\w.-]+", "_", f"{number:02d}_{row.method}_{row.postprocessor}")
        fields = _fields(row, metrics, mine, _copy_csv(mine, folder, name))
        lines += [f"## {number}", "", *(f"- **{key}**: {printable(value)}" for key, value in fields.items()), ""]
    write_text(folder / "leaderboard.csv", render(own, "csv"))
    write_text(folder / "issue.md", "\n".join(lines))
    return folder / "issue.md"


def _copy_csv(runs: pd.DataFrame, folder: Path, name: str) -> list[str]:
    """Copies the csv files of some runs into the folder `name` within `folder`; returns their paths from there."""
    copied = []
    run: Any
    for run in runs.itertuples():
        for path in sorted(Path(run.path).glob("*.csv")):
            target = folder / name / f"s{run.seed}_{path.name}"
            write_text(target, path.read_text(encoding="utf-8"))
            copied.append(target.relative_to(folder).as_posix())
    return copied


def _fields(row: Any, metrics: list[str], runs: pd.DataFrame, files: list[str]) -> dict[str, str]:
    """The fields of the issue for a row of the table, its metrics, its runs and their files."""
    data = ", ".join(sorted(set(runs["dataset"])))
    epochs = ", ".join(sorted({f"{n} epoch{'s' if n != 1 else ''}" for n in runs["epochs"].dropna()}))
    seeds = f"mean over {row.seeds} seed{'s' if row.seeds > 1 else ''}"
    return {
        "Training": row.method,
        "Postprocessor": row.postprocessor,
        **{header(key): percent_text(getattr(row, key), getattr(row, f"{key}_std")) for key in metrics},
        "Outlier Data": row.outlier_data,
        "Model Arch.": row.network,
        "Additional Description": ", ".join(filter(None, [data, epochs, seeds, row.notes])),
        "Link": "(where the method is described: fill in)",
        "Results": ", ".join(files),
    }
