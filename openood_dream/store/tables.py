"""Tables on disk, as parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from openood_dream.errors import InputError
from openood_dream.store.files import AGAIN, replacing


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as parquet, whole or not at all.

    Args:
        path: the file.
        frame: the table; its index is not kept.
    """
    with replacing(path) as work:
        frame.to_parquet(work, index=False)


def read_table(path: Path, remedy: str = AGAIN) -> pd.DataFrame:
    """Reads a parquet table.

    Args:
        path: the file.
        remedy: what to do where it is missing or damaged.

    Raises:
        InputError: it is missing or damaged; names it and the remedy.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable table ({reason}); {remedy}") from None
