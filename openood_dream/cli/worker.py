"""A process that does one job of a benchmark after the other."""

from __future__ import annotations

import json
import os
import sys
import traceback
from functools import partial

from openood_dream import ending
from openood_dream.cli.words import app


def serve() -> None:
    """Does the jobs that come in on standard input, and answers on standard output.

    A line of input is a JSON list of the words of `openood-dream job` and the path of its log, which gets all that the job
    prints. A line of the answer is ["said", what it is at] or, at the job's end, ["code", its exit code].
    """
    from openood_dream.pipelines.progress import relayed

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:

        def answer(kind: str, what: object) -> None:
            print(json.dumps([kind, what]), file=answers, flush=True)

        for line in sys.stdin:
            words, log = json.loads(line)
            with open(log, "a", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            with relayed(partial(answer, "said")):
                code = _done(words)
            sys.stdout.flush()
            sys.stderr.flush()
            answer("code", code)
            if code == ending.INTERRUPTED:
                break


def _done(words: list[str]) -> int:
    """The exit code of a job; what it could not help is in the log."""
    try:
        return ending.exit_code(lambda: app(["job", *words], prog_name="openood-dream", standalone_mode=False))
    except Exception:
        traceback.print_exc()
        return ending.FAILURE
