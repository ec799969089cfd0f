"""Progress bars in a log: lines now and then, in the place of carriage returns, which only a terminal understands."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

EVERY = 30.0  # seconds between two lines of a bar
UP = "\x1b[A"  # what moves a terminal's cursor up, as bars below other bars do


class Lines:
    """A text stream without a terminal behind it, for what writes progress bars as tqdm does.

    tqdm writes each state of a bar at once, after a carriage return, and line ends and UP alone around those of a bar
    below another one. A state becomes a line where the bar has run for EVERY seconds since its last one, or is full. What
    is no bar goes through as it is.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open = False  # whether a line that is no bar's has begun and not ended
        self._below = False  # whether the next state is that of a bar below another one
        self._told: dict[str, float] = {}  # when each bar, by the words before its colon, last had a line
        self._full = set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Takes a text; returns its length."""
        if text.startswith("\r"):
            self._bar(text.strip("\r "))
            self._below = False
        elif not text.replace(UP, "").strip("\n") and not self._open:
            self._below = "\n" in text
        else:
            self._stream.write(text)
            self._open = not text.endswith("\n")
        return len(text)

    def _bar(self, state: str) -> None:
        if not state:  # it is wiped away
            return
        name, now = state.partition(":")[0], time.monotonic()
        full = "100%" in state and not self._below
        due = now - self._told.setdefault(name, now) >= EVERY
        if due or (full and name not in self._full):
            self._stream.write(f"{state}\n")
            self._told[name] = now
        (self._full.add if full else self._full.discard)(name)


@contextmanager
def lines_without_terminal() -> Iterator[None]:
    """Within the block standard error has no carriage returns, unless a terminal shows it."""
    before = sys.stderr
    if not before.isatty():
        sys.stderr = Lines(before)  # which has the rest of it by __getattr__
    try:
        yield
    finally:
        sys.stderr = before
