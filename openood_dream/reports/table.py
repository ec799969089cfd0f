"""Runs to a table: mean and standard deviation over seeds, what is chance, and what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from openood_dream.config.files import shipped_configs
from openood_dream.errors import InputError, warn
from openood_dream.evaluators import significance
from openood_dream.reports.columns import headers, is_spectrum, metrics_of, primary
from openood_dream.reports.runs import read_scores
from openood_dream.reports.variants import ROW, VARIANT, variants

AVERAGES = {"auroc": "AUROC", "fpr95": "FPR@95"}  # of a published mean over sets that are no near- and far-OOD groups
BASE = "base"  # the method that others are compared with
Draws = Mapping[str, np.ndarray]  # metrics in each bootstrap resample, in percent (B,)


def table(
    runs: pd.DataFrame,
    allow_mixed: bool = False,
    sort: str | None = None,
    failures: Sequence[Mapping[str, Any]] = (),
    published: bool = False,
    summaries: Sequence[Mapping[str, Any]] = (),
) -> pd.DataFrame:
    """Puts runs into a table, one row for each method and postprocessor, and for runs that differ in more than their seed.

    Args:
        runs: runs.collect's rows; there may be none where there are `summaries`.
        allow_mixed: whether runs may differ in data set, network, epochs or OOD sets; such runs get rows of their own,
            and the difference is noted.
        sort: the column that orders the rows, the best first; None: columns.primary.
        failures: jobs that failed, each with method, postprocessor, seed, text, network, dataset and outlier_data; they
            are noted in their row.
        published: whether to add the numbers of published.yml for the same data set.
        summaries: rows of runs.summaries, which are means over seeds already.

    Returns:
        The columns of `columns.headers`, and VARIANT where runs of a method differ; metrics in percent: mean and, in
        `<metric>_std`, sample standard deviation over seeds (NaN for one seed). Where the runs have their scores: `<metric>_low` and
        `_high`, a bootstrap 95 % interval over the test images; `p_base` and `p_best`, two-sided p-values against the
        base method (with the same postprocessor, else its best) and against the best row (which has none), by paired
        bootstrap of columns.primary's mean over seeds; `gain_over_base`, the difference in it.

    Raises:
        InputError: runs differ though `allow_mixed` is False, an unknown `sort`, damaged scores, or no published
            numbers for the data set.
    """
    everything = pd.concat([runs, pd.DataFrame(summaries)], ignore_index=True) if summaries else runs
    others = _published_rows(everything["dataset"].unique().tolist()) if published else []
    metrics = metrics_of(runs)
    everything, noted = _told_apart(everything, allow_mixed)
    frame = _means(everything[: len(runs)], metrics, noted, failures) if len(runs) else pd.DataFrame({VARIANT: []})
    told_apart = any(frame[VARIANT])
    read = [
        dict(row) | {"notes": "; ".join([*(f"{key} {told[key]}" for key in noted), row["notes"]])}
        for row, (_, told) in zip(summaries, everything[len(runs) :].iterrows())
    ]
    more = [*read, *_failed_rows(frame, failures), *others]
    frame = pd.concat([frame, pd.DataFrame(more)]) if more else frame
    frame = frame.reindex(columns=_columns(frame) + ([VARIANT] if told_apart else [])).astype(
        {"seeds": "Int64", "published": bool}
    )
    return _sorted(frame, sort)


def _means(
    runs: pd.DataFrame, metrics: Sequence[str], noted: Sequence[str], failures: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The rows of a table that runs make, with their statistics; arguments are those of `table`, `noted` _told_apart's."""
    by = list(dict.fromkeys([*ROW, *noted]))
    found, sentences = variants(runs, by)
    for sentence in sentences:
        warn(sentence)
    runs = runs.assign(**{VARIANT: found})
    by.append(VARIANT)
    all_seeds = runs.groupby("dataset")["seed"].nunique()
    resampled = _resampled(runs)
    rows, draws = [], []
    for values, group in runs.groupby(by):
        row: dict[str, Any] = dict(zip(by, values)) | {"seeds": group["seed"].nunique(), "published": False}
        row["warnings"] = _warnings(group)
        row |= group[metrics].mean().to_dict() | group[metrics].std().add_suffix("_std").to_dict()
        rows.append(row | {"notes": "; ".join(_notes(row, noted, all_seeds[row["dataset"]], failures))})
        draws.append(_mean_draws([resampled[path] for path in group["path"]]))
    frame = pd.DataFrame(rows, index=range(len(rows)))
    numbers = [*metrics, *(f"{metric}_std" for metric in metrics)]
    frame[numbers] = frame[numbers].round(10)  # less than that is noise of the summation
    return frame.join(_statistics(frame, draws, ["dataset", *noted]))


def _columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a table in their order, which csv files have too."""
    metrics = metrics_of(frame)
    plain, spectrum = ([key for key in metrics if is_spectrum(key) == is_one] for is_one in (False, True))
    return [
        *(key for key in headers(frame) if key not in spectrum),
        *(f"{key}_std" for key in plain),
        *(f"{key}_{bound}" for key in plain for bound in ("low", "high")),
        *("gain_over_base", "p_base", "p_best", "published"),
        *(f"{key}{end}" for key in spectrum for end in ("", "_std")),
    ]


def _told_apart(runs: pd.DataFrame, allow_mixed: bool) -> tuple[pd.DataFrame, list[str]]:
    """The runs with epochs and OOD sets as text, and the columns in which they differ, but for the network.

    InputError where they differ though they may not.
    """
    sets = [name for name in runs.columns.tolist() if name.startswith("auroc_")]
    epochs = ["unknown" if pd.isna(number) else str(number) for number in runs["epochs"]]
    ood_sets = [" ".join(n.removeprefix("auroc_") for n in sets if pd.notna(run[n])) for _, run in runs.iterrows()]
    runs = runs.assign(epochs=epochs, **{"OOD sets": ood_sets})
    differing = [key for key in ("dataset", "network", "epochs", "OOD sets") if runs[key].nunique() > 1]
    if differing and not allow_mixed:
        values = " and ".join(f"{key} ({', '.join(sorted(runs[key].unique()))})" for key in differing)
        raise InputError(
            f"the runs differ in {values}; give runs that agree, or --mixed for rows that cannot be compared"
        )
    return runs, [key for key in differing if key != "network"]


def _notes(
    row: Mapping[str, Any], noted: Sequence[str], seeds: int, failures: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What a row's description says: values that differ among rows, fewer than all `seeds`, and failures."""
    notes = [f"{key} {row[key]}" for key in noted] + ([row[VARIANT]] if row[VARIANT] else [])
    notes += [f"fewer seeds ({row['seeds']} of {seeds})"] if row["seeds"] < seeds else []
    own = row["method"], row["postprocessor"]
    failed = [one for one in failures if (one["method"], one["postprocessor"]) == own]
    return [*notes, *row["warnings"], *(f"seed {one['seed']} failed: {one['text']}" for one in failed)]


def _warnings(runs: pd.DataFrame) -> list[str]:
    """What is doubtful about the runs of a row: of each warning the first clause, without what to do, and the seeds."""
    seeds: dict[str, dict[Any, None]] = {}
    for seed, texts in sorted(zip(runs["seed"], runs["warnings"]), key=lambda pair: pair[0]):
        for text in texts:
            seeds.setdefault(str(text).partition(";")[0], {})[seed] = None
    return [f"seed{'s' * (len(own) > 1)} {', '.join(map(str, own))}: {text}" for text, own in seeds.items()]


def _sorted(frame: pd.DataFrame, sort: str | None) -> pd.DataFrame:
    known, sort = list(headers(frame)), sort or primary(frame)
    if sort not in known:
        raise InputError(f"sort: no column {sort!r}; expected one of {', '.join(known)}")
    text = not pd.api.types.is_numeric_dtype(frame[sort])
    aurocs = [key for key in metrics_of(frame) if key.endswith("_auroc") and not is_spectrum(key)]
    ties = dict.fromkeys(aurocs, False) | {"method": True, "postprocessor": True}
    order = {sort: text or "fpr95" in sort} | {key: up for key, up in ties.items() if key != sort}
    return frame.sort_values(list(order), ascending=list(order.values()), ignore_index=True)


def _resampled(runs: pd.DataFrame) -> dict[str, Draws]:
    """By a run's path its metrics in each resample; none where its scores are not all there."""
    found: dict[str, Draws] = {}
    run: Any
    for run in tqdm(list(runs.itertuples()), desc="bootstrap", unit="run", leave=False, delay=2):
        groups = run.groups
        files = {name: Path(run.path) / "scores" / f"{name}.npz" for name in (run.dataset, *sum(groups.values(), []))}
        found[run.path] = {}
        if groups and all(path.is_file() for path in files.values()):
            id_scores = read_scores(files[run.dataset])
            ood_scores = {
                group: {name: read_scores(files[name])[1] for name in names} for group, names in groups.items()
            }
            found[run.path] = significance.draws(run.dataset, id_scores, ood_scores)
    return found


def _mean_draws(draws: Sequence[Draws]) -> Draws:
    """The mean over seeds in each resample, of the metrics that all seeds have."""
    shared = set.intersection(*map(set, draws))
    return {metric: np.mean([of[metric] for of in draws], axis=0) for metric in shared}


def _statistics(frame: pd.DataFrame, draws: Sequence[Draws], alike: list[str]) -> pd.DataFrame:
    """Intervals and p-values of the rows, against those that agree in the columns `alike`."""
    metric = primary(frame)
    found: list[dict[str, float]] = []
    order = [i for i in frame[metric].sort_values(ascending=False).index.tolist() if metric in draws[i]]
    for index in range(len(frame)):
        row, cells = frame.iloc[index], {}
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


def _failed_rows(frame: pd.DataFrame, failures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without numbers for methods and postprocessors of which no seed succeeded."""
    there = set(zip(frame["method"], frame["postprocessor"])) if failures else set()
    rows = dict[tuple[str, str], dict[str, Any]]()
    for one in failures:
        key = one["method"], one["postprocessor"]
        if key not in there:
            row = rows.setdefault(key, {k: v for k, v in one.items() if k not in ("seed", "text")} | {"notes": []})
            row |= {"seeds": 0, "published": False}
            row["notes"].append(f"seed {one['seed']} failed: {one['text']}")
    return [row | {"notes": "; ".join(row["notes"])} for row in rows.values()]


def _published_rows(datasets: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of published.yml for these data sets; each says where it was published."""
    entries = yaml.safe_load((shipped_configs() / "published.yml").read_text(encoding="utf-8"))
    rows = []
    for entry in entries:
        if entry["dataset"] in datasets:
            row = {key: value for key, value in entry.items() if key not in ("dataset", "source", "average")}
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
