"""Runs of one method that are no repetitions of each other, told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from openood_dream.config.tree import MISSING
from openood_dream.errors import show, warn
from openood_dream.store.files import fingerprint

VARIANT = "variant"  # a column: in what a run differs from others of its method, "" where it differs in its seed alone
SHOWN = 3  # keys that are named
FINGERPRINTS = ("outliers", "images")  # the last names of keys whose values are hashes


def split(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Runs with a column VARIANT, equal for those that differ in nothing that determines them but the seed.

    Warns of rows that fall apart, and names the keys.

    Args:
        runs: runs.collect's rows; `settings` holds what determines each.
        by: the columns that make a row.
    """
    found = pd.Series("", index=runs.index)
    for values, group in runs.groupby(list(by)):
        keys = differing_keys(group["settings"].tolist())
        if keys:
            found[group.index] = [_text(settings, keys) for settings in group["settings"]]
            named = dict(zip(by, values))
            what = f"{named['method']} with {named['postprocessor']}"
            said = ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
            warn(f"{what}: runs differ in {said}; they stand in rows of their own, since they are no seeds of one run")
    return runs.assign(**{VARIANT: found})


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which some runs differ; a fingerprint only where nothing else does.

    Args:
        settings: what determines each run, by dotted key.
    """
    keys = dict.fromkeys(key for one in settings for key in one)
    found = [key for key in keys if any(one.get(key, MISSING) != settings[0].get(key, MISSING) for one in settings)]
    words = [key for key in found if key.rpartition(".")[2] not in FINGERPRINTS]
    return words or found


def _text(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    words = [f"{key} {_value(settings.get(key, MISSING))}" for key in keys[:SHOWN]]
    rest = {key: settings.get(key) for key in keys[SHOWN:]}
    # a fingerprint of the rest, so that all of them count though not all are shown
    return ", ".join(words) + (f" and {len(rest)} more ({fingerprint(rest)[:4]})" if rest else "")


def _value(value: Any) -> str:
    return "not set" if value is MISSING else value if isinstance(value, str) else show(value)
