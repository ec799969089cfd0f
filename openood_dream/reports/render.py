"""Tables as text: markdown, csv, json, LaTeX, or columns that fit into the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from openood_dream.dream.findings import quality_table
from openood_dream.errors import FORMULAS, InputError, printable
from openood_dream.evaluators import significance
from openood_dream.evaluators.verdicts import Verdicts
from openood_dream.reports.columns import headers, metrics_of, primary
from openood_dream.reports.table import BASE
from openood_dream.store.artifacts import Artifact

BETTER, WORSE, AS_GOOD = "▲", "▼", "≈"
LEGEND = (
    f"{BETTER} {WORSE} significantly better, worse than {BASE}; {AS_GOOD} not significantly different from the best "
    f"(paired bootstrap over test images, p < {significance.LEVEL})"
)
TEX = {" ± ": r" $\pm$ ", BETTER: r"$^{+}$", WORSE: r"$^{-}$", AS_GOOD: r"$^{\approx}$", "–": "--"}


def render(table: pd.DataFrame, fmt: str) -> str:
    """A leaderboard as text.

    Args:
        table: rows of table.table.
        fmt: md, csv, json, tex or terminal.

    Raises:
        InputError: another format.
    """
    renderers = {
        "md": _markdown,
        "csv": lambda table: _texts(table, inert).to_csv(index=False),
        "json": lambda table: json.dumps(plain_rows(table), indent=2, ensure_ascii=False) + "\n",
        "tex": _latex,
        "terminal": _terminal,
    }
    if fmt not in renderers:
        raise InputError(f"format {fmt!r}: expected one of {', '.join(renderers)}")
    return renderers[fmt](_texts(table, printable))


def inert(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULAS) else text


def _texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """A table with every text in it changed."""
    return table.map(lambda cell: change(cell) if isinstance(cell, str) else cell)


def render_quality(artifact: Artifact) -> str:
    """What the quality stage found, as text for a terminal: a row per class."""
    inputs = artifact.manifest["inputs"]
    confidence, k = inputs["settings"]["confidence"], inputs["settings"]["k"]
    own_judge = "checkpoint" in inputs["judge"]
    judge = f"the checkpoint's {inputs['judge']['network']['name']}" if own_judge else "the space's classifier"
    headers = {
        "own class": "own\nclass %",
        "confident": f"surer than\n{confidence:g}, %",
        "distance": f"{k}-NN\ndistance",
        "5 %": "its\n5 %",
        "99 %": "its\n99 %",
        "duplicates": "dupli-\ncates",
    }
    frame = quality_table(artifact)
    rows = [
        ["" if pd.isna(x) else f"{x:.3g}" if isinstance(x, float) else printable(str(x)) for x in row]
        for row in frame.itertuples(index=False)
    ]
    shown = pd.DataFrame(rows, columns=frame.columns)
    words = f"judged by {judge}; distances of features to the nearest ID training images"
    return _printed(_columns(shown, headers, set(frame.columns.tolist()) - {"class"}), Text(words, style="dim"))


def render_verdicts(verdicts: Verdicts, fmt: str) -> str:
    """Verdicts on images as text.

    Args:
        verdicts: the verdicts.
        fmt: table, csv or json; scores and thresholds have all their digits in the last two.
    """
    if fmt == "json":
        rows = [row | {"score": _finite(row["score"])} for row in verdicts.to_records()]
        # in ASCII, so that nothing in a name of a file does anything to a terminal
        return json.dumps(rows, indent=2).replace("\x7f", "\\u007f") + "\n"
    frame = _texts(verdicts.to_pandas(), printable)
    if fmt == "csv":
        return _texts(frame, inert).to_csv(index=False)
    frame["score"] = [f"{score:.4g}" for score in verdicts.scores]
    shown = frame[["image", "class" if any(verdicts.classes) else "label", "score", "verdict"]].astype(str)
    return _printed(_columns(shown, {}, {"score"}), Text(verdicts.summary(), style="dim"))


def _finite(number: float) -> float | None:
    """A number as JSON has it, which knows no infinite ones."""
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------------------------------------- cells


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain Python values, with None for what is missing."""
    columns = {str(name): [_plain(value) for value in frame[name]] for name in frame}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    """A cell as JSON has it; pandas' own way makes floats of counts beside which some are missing."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if pd.isna(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return round(value, 12) if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str)) else str(value)


def percent_text(mean: float, deviation: float) -> str:
    """A metric as people read it.

    Args:
        mean: in percent; NaN is shown as a dash.
        deviation: over seeds; NaN is left out.
    """
    return "–" if pd.isna(mean) else f"{mean:.2f}" + (f" ± {deviation:.2f}" if pd.notna(deviation) else "")


def cells(table: pd.DataFrame, intervals: bool = False) -> pd.DataFrame:
    """A leaderboard's cells as people read them: two decimals, deviations, marks, and a dash for nothing.

    Args:
        table: rows of table.table.
        intervals: whether the bootstrap intervals are added.
    """
    table = _texts(table, printable)
    shown = table[list(headers(table))].astype("string").fillna("–").astype(object)
    shown["method"] = [f"{row.method} (published)" if row.published else row.method for row in table.itertuples()]
    signs = marks(table)
    for metric in metrics_of(table):
        texts = []
        for index in range(len(table)):
            row = table.iloc[index]
            text = percent_text(row[metric], row[f"{metric}_std"])
            if intervals and pd.notna(row.get(f"{metric}_low")):
                text += f" [{row[f'{metric}_low']:.2f}, {row[f'{metric}_high']:.2f}]"
            texts.append(f"{text} {signs[index]}" if signs[index] and metric == primary(table) else text)
        shown[metric] = texts
    return shown


def marks(table: pd.DataFrame) -> list[str]:
    """For each row whether it is significantly better or worse than base, and whether it is as good as the best."""
    found = []
    row: Any
    for row in table.itertuples():
        sure = pd.notna(row.p_base) and row.p_base < significance.LEVEL
        mark = (BETTER if row.gain_over_base > 0 else WORSE) if sure else ""
        level = pd.notna(row.p_best) and row.p_best >= significance.LEVEL
        found.append(mark + (AS_GOOD if level else ""))
    return found


def ranks(table: pd.DataFrame) -> dict[str, list[int]]:
    """For each metric the rank of each row, 1 the best, 0 without a number; rows that show the same share a rank."""
    rank = {
        metric: table[metric].round(2).rank(method="dense", ascending="fpr95" in metric) for metric in metrics_of(table)
    }
    return {metric: of_rows.fillna(0).astype(int).tolist() for metric, of_rows in rank.items()}


def _narrowed(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The shown cells without the columns that can be said in words, and those words."""
    own = table[~table["published"].astype(bool)]
    networks, seeds = table["network"].unique().tolist(), own["seeds"].max()
    facts = ["one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"]
    facts += networks if len(networks) == 1 else []
    facts += [LEGEND] if any(marks(table)) else []
    facts += [f"{text}: {_names(table[table['notes'] == text])}" for text in table["notes"].unique().tolist() if text]
    in_words = ["seeds", "notes", "network"] if len(networks) == 1 else ["seeds", "notes"]
    return cells(table).drop(columns=in_words), "; ".join(facts)


def _names(rows: pd.DataFrame) -> str:
    """The methods of some rows of a table, each with the postprocessors that it has there."""
    methods = rows["method"].unique().tolist()
    return ", ".join(f"{name} ({' '.join(rows['postprocessor'][rows['method'] == name])})" for name in methods)


# ----------------------------------------------------------------------------------------------------------- formats


def _markdown(table: pd.DataFrame) -> str:
    shown = cells(table, intervals=True)
    escaped = shown.map(lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;"))
    rule = ["---:" if key in (*metrics_of(table), "seeds") else "---" for key in shown.columns.tolist()]
    words = headers(table)
    lines = [[words[key] for key in shown.columns.tolist()], rule, *escaped.to_numpy().tolist()]
    legend = f"\n{LEGEND}; in brackets bootstrap 95 % intervals over test images.\n" if any(marks(table)) else ""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + legend


def _latex(table: pd.DataFrame) -> str:
    (shown, facts), rank, looks = _narrowed(table), ranks(table), {1: "textbf:--rwrap", 2: "underline:--rwrap"}
    style = shown.style.hide(axis="index").format(escape="latex")
    style = style.apply(lambda column: [looks.get(number) for number in rank[column.name]], subset=metrics_of(table))
    style = style.relabel_index([headers(table)[key] for key in shown.columns.tolist()], axis="columns")
    align = "".join("r" if key in metrics_of(table) else "l" for key in shown.columns.tolist())
    text = style.to_latex(column_format=align, hrules=True)
    for sign, command in TEX.items():
        text = text.replace(sign, command)
    return f"% Needs \\usepackage{{booktabs}}. {' '.join(facts.split())}.\n{text}"


def _terminal(table: pd.DataFrame) -> str:
    console, (shown, facts) = Console(), _narrowed(table)
    folded = shown.map(lambda text: text.replace(" (", "\n("))
    short = folded[[key for key in folded if not key.endswith(("fpr95", "fs_auroc"))]]
    stacked = short.map(lambda text: text.replace(" ± ", "\n± "))
    hint = "; for FPR@95, widen the terminal or choose another format"
    stacks = {key: words.replace(" ", "\n").replace("Postp", "Post-\np") for key, words in headers(table).items()}
    # The first layout that fits is taken, and the last one in any case.
    for texts, words in ((shown, facts), (folded, facts), (short, facts + hint), (stacked, facts + hint)):
        view, below = _columns(texts, stacks, metrics_of(table)), Text(words, style="dim")
        if console.measure(view, options=console.options.update_width(9999)).maximum <= console.width:
            break
    return _printed(view, below)


def _columns(texts: pd.DataFrame, headers: Mapping[str, str], numbers: Collection[str]) -> Table:
    """A frame of texts for the terminal; the columns `numbers` are aligned at the right."""
    view = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    for key in texts.columns.tolist():
        view.add_column(headers.get(key, key), justify="right" if key in numbers else "left", overflow="fold")
    for row in texts.to_numpy().tolist():
        view.add_row(*map(Text, row))  # Text, so that no name is taken for markup
    return view


def _printed(*parts: RenderableType) -> str:
    """What the terminal shows of these parts, one below the other."""
    console = Console()
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()
