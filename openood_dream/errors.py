"""Bad input: an error whose message is one line, and the words that such messages share."""

from __future__ import annotations

import difflib
import re
import textwrap
import warnings
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input; the message is one line that names file, key and value, and says what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputWarning(UserWarning):
    """A doubt about the input or about a result, in one line with the number and what to do."""


def warn(text: str) -> None:
    """Warns of something that makes a result worth less than it looks; the command prints it in one line.

    Args:
        text: the number, what is doubtful about it, and what to do.
    """
    warnings.warn(InputWarning(printable(text)), stacklevel=3)


# what moves a terminal's cursor, colours it or turns its text around, and what else ends a line
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

FORMULAS = ("=", "+", "-", "@")  # what a cell of a CSV file begins with that a spreadsheet computes


def printable(text: str) -> str:
    """Text in one line, as it can be shown anywhere: white space as spaces, control characters as their escapes."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], " ".join(text.splitlines()).replace("\t", " "))


def check_name(key: str, name: Any, names: Iterable[str], where: str = "") -> None:
    """Checks that the value of a config key is one of the known names.

    Args:
        key: the dotted key, such as "trainer.name".
        name: its value.
        names: the names that are known.
        where: the file that set the key, or "" where that is not known.

    Raises:
        InputError: `name` is none of `names`; the message offers the nearest one and lists them all.
    """
    known = sorted(set(names))
    if name not in known:
        near = nearest(str(name), known)
        hint = f"did you mean {near!r}? " if near else ""
        place = f"{where}: " if where else ""
        raise InputError(f"{place}{key}: unknown {name!r}; {hint}known are {', '.join(known)}")


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `names` that looks most like `word`; None where none does (difflib's ratio is below `cutoff`)."""
    return next(iter(difflib.get_close_matches(word, list(names), 1, cutoff)), None)


def reason(error: BaseException, width: int = 200) -> str:
    """What an exception says, in one line; its class where it says nothing.

    Args:
        error: the exception.
        width: the most characters.
    """
    return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__


def show(value: Any) -> str:
    """A config value as messages show it: YAML's words for null, true and false, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# What allocators say; torch, cuDNN, cuBLAS, MPS and the C++ library raise a RuntimeError of their own each.
SHORT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or the machine's, was too small."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words.lower() in str(error).lower() for words in SHORT_OF_MEMORY)
