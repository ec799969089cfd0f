"""Arrays on disk, in NumPy's npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from openood_dream.errors import InputError
from openood_dream.store.files import check_file

MOST_BYTES = 2 << 30  # of one array; a file of a megabyte may claim any number of equal ones


def read_arrays(path: Path, remedy: str, **kinds: str) -> dict[str, np.ndarray]:
    """Columns of one table: arrays (N,) of an npz, all of one length, no number of them NaN.

    Args:
        path: the file.
        remedy: what to do where it is damaged.
        kinds: the names of the arrays, and for each NumPy's letters for the kinds of its values: iu for whole numbers.

    Raises:
        InputError: the file is missing or damaged, or an array is missing, empty or of another form.
    """
    try:
        check_file(path, remedy)
        with zipfile.ZipFile(path) as parts:
            for name in kinds:
                size = parts.getinfo(f"{name}.npy").file_size
                if size > MOST_BYTES:
                    raise ValueError(f"{name} has {size} bytes, more than {MOST_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in kinds}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy report a damaged file through many exception types
        raise InputError(f"{path}: expected arrays {', '.join(kinds)} ({error}); {remedy}") from None
    sizes = {name: array.shape for name, array in arrays.items()}
    first = next(iter(sizes.values()))
    if len(first) != 1 or not first[0] or any(size != first for size in sizes.values()):
        raise InputError(f"{path}: expected arrays of one length, got the shapes {sizes}; {remedy}")
    for name, array in arrays.items():
        if array.dtype.kind not in kinds[name] or np.isnan(array).any():
            raise InputError(f"{path}: {name}: expected numbers, got {array.dtype} or some that are none; {remedy}")
    return arrays
