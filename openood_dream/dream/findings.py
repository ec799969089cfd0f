"""What the quality stage found, as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from openood_dream.store.artifacts import Artifact


def quality_table(artifact: Artifact) -> pd.DataFrame:
    """The manifest's findings as a table, a row per class, then ID test images; shares in percent.

    Of `images`, the filter has left `kept` and dropped the rest.
    """
    found = [(about["name"], about) for about in artifact.manifest["classes"]]
    found += [("ID test", artifact.manifest["id"])] if "id" in artifact.manifest else []
    rows = []
    for name, about in found:
        count = max(about["images"], 1)
        rows.append(
            {
                "class": name,
                "kept": about["images"] - about["dropped"] if "dropped" in about else None,
                "images": about["images"],
                "own class": 100 * about["own_class"] / count,
                "confident": 100 * about["confident"] / count,
                "distance": about["distance"].get("p50", np.nan),
                "5 %": about["distance"].get("p5", np.nan),
                "99 %": about["distance"].get("p99", np.nan),
                "duplicates": about.get("duplicates"),
            }
        )
    return pd.DataFrame(rows).astype({"kept": "Int64", "duplicates": "Int64"})
