"""Commands in processes of their own that start at once: forks of one that has imported everything already.

Run as a program it reads a JSON list a line: the file for what the command prints, the file for its errors, and the
words of the command. It answers with the number of the process, and when that has ended with its exit status. What the
environment's OPENOOD_DREAM_HOOK names is executed in the fork first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from helpers import without_warnings


class Ended(NamedTuple):
    """How a command ended: its exit code or minus the signal that killed it, standard output, lines of standard error."""

    code: int
    out: str
    err: list[str]


class Fork:
    """A command that runs; its `pid` is also that of its process group."""

    def __init__(self, server: subprocess.Popen, folder: Path, words: list[str], hook: str) -> None:
        self.files = folder / "out.txt", folder / "err.txt"
        self.server = server
        self.pid = self.ask(["start", *map(str, self.files), hook, words])

    def ask(self, question: list) -> int:
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Waits for something that the command does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.files[1].read_text()
            time.sleep(0.002)

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(self.ask(["wait", self.pid]))
        out, err = (file.read_text() for file in self.files)
        return Ended(code, out, without_warnings(err))


@contextlib.contextmanager
def serving() -> Iterator[subprocess.Popen]:
    """The process that forks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout.readline() == "ready\n"
        yield server
        server.stdin.close()


def start(out: str, err: str, hook: str, words: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup runs them
        for number, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        exec(hook, {})  # noqa: S102  (of a test)
        sys.argv = ["openood-dream", *words]
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import torch

    from openood_dream import cli
    from openood_dream.pipelines import benchmark, stages  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order, *rest = json.loads(line)
        print(start(*rest) if order == "start" else os.waitpid(rest[0], 0)[1], flush=True)
