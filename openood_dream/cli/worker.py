"""A process that does one job of a benchmark after the other."""

from __future__ import annotations

import json
import os
import sys
import traceback

from openood_dream import ending
from openood_dream.cli.words import app


def serve() -> None:
    """Does the jobs that come in on standard input, and answers on standard output with their exit codes.

    A line of input is a JSON list of the words of `openood-dream job` and the path of its log, which gets all that the job
    prints.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            words, log = json.loads(line)
            with open(log, "a", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = _done(words)
            sys.stdout.flush()
            sys.stderr.flush()
            print(code, file=answers, flush=True)
            if code == ending.INTERRUPTED:
                break


def _done(words: list[str]) -> int:
    """The exit code of a job; what it could not help is in the log."""
    try:
        return ending.exit_code(lambda: app(["job", *words], prog_name="openood-dream", standalone_mode=False))
    except Exception:
        traceback.print_exc()
        return ending.FAILURE
