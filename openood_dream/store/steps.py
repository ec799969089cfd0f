"""Steps of a job, told to whoever listens: which one begins, and which one is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A step that begins, or one that is done.

    Args:
        name: anchors, space, ..., or train, or score.
        path: what it has made; None where it begins.
        seconds: how long that took just now; None where it was there before.
    """

    name: str
    path: Path | None = None
    seconds: float | None = None


_listener: ContextVar[Callable[[Step], None] | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Callable[[Step], None]) -> Iterator[None]:
    """Within the block every step is told to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(step: Step) -> None:
    """Tells whoever listens, if anybody does."""
    listener = _listener.get()
    if listener is not None:
        listener(step)
