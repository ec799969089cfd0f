"""Runs of one method that are no repetitions of each other, told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from openood_dream.errors import show
from openood_dream.store.files import fingerprint

VARIANT = "variant"  # a column: in what a run differs from others of its row, "" where it differs in its seed alone
ROW = ["method", "postprocessor", "outlier_data", "network", "dataset"]  # the columns that make a row of a table
SHOWN = 3  # keys that are named
START = "network.checkpoint"  # the weights that a training begins with, by their hash
OUTLIERS = "outliers"  # the key whose value is a fingerprint of imagined outliers
FINGERPRINTS = (OUTLIERS, "images")  # the last names of keys whose values are hashes
NOT_SET = "not set"
Settings = Mapping[str, Any]  # by dotted key


def variants(runs: pd.DataFrame, by: Sequence[str] = ROW) -> tuple[pd.Series, list[str]]:
    """Tells runs of one row apart that differ in something that determines them besides the seed.

    Args:
        runs: runs.collect's rows; `settings` holds what determines each, `imagined` the settings of its outliers.
        by: the columns that make a row.

    Returns:
        For each run the keys in which runs of its row differ, with its values; "" where they differ in none. And a
        sentence about each row that falls apart.
    """
    found, sentences = pd.Series("", index=runs.index), []
    for values, group in runs.groupby(list(by)):
        settings, imagined = group["settings"].tolist(), group["imagined"].tolist()
        determining = _differing(settings)
        if START in determining and _each_seed_has_its_own(group["seed"].tolist(), settings):
            determining.remove(START)
        if not determining:
            continue
        keys, texts = _told_apart(settings, imagined, determining)
        found.loc[group.index] = np.array(texts, dtype=object)
        row = dict(zip(by, values, strict=True))
        said = ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
        sentences.append(
            f"{row['method']} with {row['postprocessor']}: runs differ in {said}; they stand in rows of their own, since "
            "they are no seeds of one run"
        )
    return found, sentences


def _told_apart(
    settings: Sequence[Settings], imagined: Sequence[Settings], determining: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The keys that tell runs apart in words, and a text for each run: the same where all that determines them is.

    Args:
        settings: what determines each run.
        imagined: the settings of its outliers, which say in words what a fingerprint among `settings` stands for.
        determining: the keys in which `settings` differ.
    """
    kinds = [fingerprint([one.get(key, NOT_SET) for key in determining]) for one in settings]
    first = {kind: {**settings[i], **imagined[i]} for i, kind in reversed(list(enumerate(kinds)))}
    every = [*determining, *(_differing(imagined) if OUTLIERS in determining else [])]
    words = [key for key in every if key.rpartition(".")[2] not in FINGERPRINTS]
    for keys in (words, every):
        texts = {kind: _text(one, keys) for kind, one in first.items()}
        if keys and len(set(texts.values())) == len(first):
            break
    else:  # values so long that they are shown in part
        texts = {kind: f"{text} ({kind[:4]})" for kind, text in texts.items()}
    return keys, [texts[kind] for kind in kinds]


def _each_seed_has_its_own(seeds: Sequence[int], settings: Sequence[Settings]) -> bool:
    """Whether each seed begins with weights of its own, as where a method goes on from the base run of its seed."""
    starts = [one.get(START, NOT_SET) for one in settings]
    return len(set(zip(seeds, starts, strict=True))) == len(set(seeds)) == len(set(starts))


def _differing(runs: Sequence[Settings]) -> list[str]:
    """The keys in which some of these differ."""
    keys = dict.fromkeys(key for one in runs for key in one)
    return [key for key in keys if any(one.get(key, NOT_SET) != runs[0].get(key, NOT_SET) for one in runs)]


def _text(settings: Settings, keys: Sequence[str]) -> str:
    words = [f"{key} {_value(settings.get(key, NOT_SET))}" for key in keys[:SHOWN]]
    rest = [settings.get(key, NOT_SET) for key in keys[SHOWN:]]
    # a fingerprint of the rest, so that all of them count though not all are shown
    return ", ".join(words) + (f" and {len(rest)} more ({fingerprint(rest)[:4]})" if rest else "")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else show(value)
