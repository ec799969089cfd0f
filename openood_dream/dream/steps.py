"""Looking at the steps of a pipeline's own call, each of which is a call of its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


@contextmanager
def watched(scheduler: Any, after: Callable[..., None]) -> Iterator[None]:
    """Within the block a function is called after each step of a scheduler.

    Args:
        scheduler: of diffusers.
        after: takes what `scheduler.step` was given: the network's output, the time step and the noisy latents first.
    """
    step = scheduler.step

    @wraps(step)  # pipelines look at its arguments
    def noted(*args: Any, **options: Any) -> Any:
        made = step(*args, **options)
        after(*args, **options)
        return made

    scheduler.step = noted
    try:
        yield
    finally:
        del scheduler.step  # the class's own is left
