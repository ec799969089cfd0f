"""What the quality stage found, as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from openood_dream.store.artifacts import Artifact


def quality_table(artifact: Artifact) -> pd.DataFrame:
    """The manifest's findings as a table, a row per class, then ID test images; shares in percent."""
    found = [(about["name"], about) for about in artifact.manifest["classes"]]
    found += [("ID test", artifact.manifest["id"])] if "id" in artifact.manifest else []
    rows = []
    for name, about in found:
        count = max(about["images"], 1)
        rows.append(
            {
                "class": name,
                "images": about["images"],
                "own class": 100 * about["own_class"] / count,
                "confident": 100 * about["confident"] / count,
                "distance": about["distance"].get("p50", np.nan),
                "5 %": about["distance"].get("p5", np.nan),
                "99 %": about["distance"].get("p99", np.nan),
                "duplicates": about.get("duplicates"),
                "dropped": about.get("dropped"),
            }
        )
    return pd.DataFrame(rows).astype({"duplicates": "Int64", "dropped": "Int64"})
