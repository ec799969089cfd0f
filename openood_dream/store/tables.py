"""Tables on disk, as parquet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from openood_dream.errors import InputError
from openood_dream.store.files import AGAIN, check_file, replacing

MOST_ROWS = 50_000_000  # a file of a kilobyte may claim any number of equal rows
INTEGERS, NUMBERS, TEXTS = "iu", "iuf", "OU"  # NumPy's kinds of a column's values
Columns = Mapping[str, Collection[str]]


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as parquet, whole or not at all.

    Args:
        path: the file.
        frame: the table; its index is not kept.
    """
    with replacing(path) as work:
        frame.to_parquet(work, index=False)


def read_table(path: Path, columns: Columns, remedy: str = AGAIN) -> pd.DataFrame:
    """Reads a parquet table.

    Args:
        path: the file.
        columns: those that it must have, and what values: INTEGERS, NUMBERS or TEXTS, none of them missing. Others are
            read as they are.
        remedy: what to do where it is missing or damaged.

    Raises:
        InputError: it is missing or damaged; names it and the remedy.
    """
    try:
        check_file(path, remedy)
        count = pq.read_metadata(path).num_rows
        if count > MOST_ROWS:
            raise ValueError(f"{count} rows, more than {MOST_ROWS}")
        table = pd.read_parquet(path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pyarrow and pandas report a damaged file through many exception types
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable table ({reason}); {remedy}") from None
    for name, kinds in columns.items():
        if name not in table:
            raise InputError(f"{path}: no column {name!r} but {', '.join(map(str, table.columns))}; {remedy}")
        column = table[name]
        fits = getattr(column.dtype, "kind", "O") in kinds and not column.isna().any()
        if fits and len(column) and column.dtype.kind == "O":
            fits = pd.api.types.infer_dtype(column) == "string"
        if not fits:
            what = {INTEGERS: "whole numbers", NUMBERS: "numbers", TEXTS: "texts"}[str(kinds)]
            raise InputError(f"{path}: column {name}: expected {what}, got {column.dtype} or missing ones; {remedy}")
    return table
