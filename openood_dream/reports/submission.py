"""An entry of OpenOOD's leaderboard: the text of the issue, filled in, and the csv files that it attaches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from openood_dream.errors import printable, warn
from openood_dream.reports.columns import header, is_spectrum, metrics_of
from openood_dream.reports.entries import DETECTORS, TRAININGS, doubts, network_accuracy
from openood_dream.reports.render import percent_text, render
from openood_dream.reports.variants import ROW, VARIANT, variants
from openood_dream.store.files import write_text


def submit(runs: pd.DataFrame, table: pd.DataFrame, folder: Path) -> Path:
    """Writes what an entry of OpenOOD's leaderboard needs: each run's csv files, leaderboard.csv and issue.md.

    Names are the leaderboard's. ID accuracy is the network's own, as OpenOOD's Evaluator has it, where its pipelines
    count what the detector predicts (ash, react, ...); it comes from a run of the same network with another detector.
    Warns of whatever keeps runs from being comparable with the leaderboard's.

    Args:
        runs: runs.collect's rows.
        table: table.table of these runs; published rows and those without a finished run are left out.
        folder: where the files are written.

    Returns:
        The path of issue.md.
    """
    own = table[~table["published"] & (table["seeds"] > 0)].copy()
    runs = runs.assign(**{VARIANT: variants(runs)[0]})
    keys = [key for key in (*ROW, VARIANT) if key in own]
    metrics = [key for key in metrics_of(own) if "fpr95" not in key and not is_spectrum(key)]
    members = {i: runs[(runs[keys] == [own.loc[i, key] for key in keys]).all(axis=1)] for i in own.index}
    for text in dict.fromkeys(text for i in own.index for text in _corrected(own, i, members[i], runs)):
        warn(f"--submission: {text}")
    titles = [TRAININGS.get(name, name) for name in own["method"].unique()]
    lines = ["Title: [leaderboard] " + printable(", ".join(titles)), ""]
    for number, row in enumerate(own.itertuples(), 1):
        mine = members[row.Index]
        name = re.sub(r"[^\w.-]+", "_", f"{number:02d}_{row.method}_{row.postprocessor}")
        fields = _fields(row, metrics, mine, _copy_csv(mine, folder, name))
        lines += [f"## {number}", "", *(f"- **{key}**: {printable(value)}" for key, value in fields.items()), ""]
    write_text(folder / "leaderboard.csv", render(own, "csv"))
    write_text(folder / "issue.md", "\n".join(lines))
    return folder / "issue.md"


def _corrected(own: pd.DataFrame, index: int, mine: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Puts the networks' own accuracy into a row of a table; returns what is doubtful about that row.

    Args:
        own: rows of a table, written to.
        index: the row's.
        mine: its runs, as rows of `runs`.
        runs: all runs.
    """
    found, accuracy = doubts(mine), network_accuracy(mine, runs)
    if accuracy is None:
        name = mine["postprocessor"].iloc[0]
        found.append(
            f"{mine['method'].iloc[0]} with {name}: ID accuracy counts what {name} predicts, and the leaderboard what the "
            "network does; score the same networks with msp too, and give those runs with these"
        )
    else:
        own.loc[index, ["id_acc", "id_acc_std"]] = accuracy.mean(), accuracy.std()
    return found


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
        "Training": TRAININGS.get(row.method, row.method),
        "Postprocessor": DETECTORS.get(row.postprocessor, row.postprocessor),
        **{header(key): percent_text(getattr(row, key), getattr(row, f"{key}_std")) for key in metrics},
        "Outlier Data": row.outlier_data,
        "Model Arch.": row.network,
        "Additional Description": ", ".join(filter(None, [data, epochs, seeds, row.notes])),
        "Link": "(where the method is described: fill in)",
        "Results": ", ".join(files),
    }
