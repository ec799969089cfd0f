"""How the command ends: exit codes, interruptions, and one line for an error or a warning."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from openood_dream.errors import InputError, InputWarning, out_of_memory, reason

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130  # exit codes


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT raises KeyboardInterrupt, and the second one ends the process at once."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else they are ignored, as by nohup
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(*_: object) -> None:
    """The first interruption lets a run clean up and say how to go on, the second one stops it at once."""
    signal.signal(signal.SIGINT, stopped)
    raise KeyboardInterrupt


def stopped(*_: object) -> None:
    """Ends at once."""
    os.write(2, b"openood-dream: error: interrupted again; stopped at once\n")  # print may be what was interrupted
    os._exit(INTERRUPTED)


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Within the block our warnings are printed as the command's own, each text once."""
    seen = set[str]()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, *where: Any, **more: Any) -> None:
            if not isinstance(message, InputWarning):
                others(message, *where, **more)
            elif str(message) not in seen:
                seen.add(str(message))
                print(f"openood-dream: warning: {message}", file=sys.stderr)

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command; bad input and errors of the machine end in one line.

    Args:
        command: returns its exit code; None is 0.

    Returns:
        The exit code: 2 for bad input, 1 for a failure, 130 after an interruption.
    """
    try:
        with interruptible(), warnings_in_a_line():
            code = command() or 0
        if code == INTERRUPTED:  # what typer makes of an interruption, without a word
            fail("interrupted; run the same command again to go on where it stopped")
        return code
    except InputError as error:
        fail(str(error))
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail("there is not enough memory; lower the batch sizes of the config, or give a smaller image_size")
        return FAILURE
    except (FloatingPointError, OSError) as error:  # an OSError is about the machine, so one line says it all
        fail(reason(error, 2000))
        return FAILURE


def fail(text: str) -> None:
    """Says in one line what went wrong."""
    print(f"openood-dream: error: {text}", file=sys.stderr)
