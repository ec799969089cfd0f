"""The names of the ID classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from openood_dream.config.files import shipped_configs
from openood_dream.errors import InputError


def class_names(names: str | Sequence[str], num_classes: int, error: Callable[[str], InputError]) -> list[str]:
    """The class names that a config gives: a list, or a file with one name a line.

    Args:
        names: the names, or the file; one that is not there is looked up among the shipped configs.
        num_classes: the number of ID classes.
        error: makes the error that names file and key of the setting.

    Returns:
        One name for each class.

    Raises:
        InputError: the file is missing or names a class twice, or there are not as many names as classes.
    """
    found = _read(names, error) if isinstance(names, str) else list(names)
    if len(found) != num_classes:
        raise error(f"{len(found)} names for {num_classes} classes (dataset.num_classes); expected as many")
    return found


def _read(file: str, error: Callable[[str], InputError]) -> list[str]:
    """The names in a file, one a line."""
    path = Path(file) if os.path.exists(file) else shipped_configs() / file
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise error(f"{path}: expected a file with one class name a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as reason:
        raise error(f"{path}: expected UTF-8 text, got byte 0x{reason.object[reason.start]:02x}") from None
    except (OSError, ValueError):
        raise error(f"no such file {file!r}; expected one class name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    for name, count in Counter(names).items():
        if count > 1:
            raise error(f"{path}: expected each name once, got {name!r} {count} times")
    return names
