"""What progress bars leave in a log."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from openood_dream import logs
from openood_dream.logs import Lines


@pytest.fixture
def log(monkeypatch) -> io.StringIO:
    """What a log holds, whose bars have a line after each second of a clock that a bar's step moves by one."""
    now = [0.0]
    monkeypatch.setattr(logs, "EVERY", 2)
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    written.tick = lambda: now.__setitem__(0, now[0] + 1)
    return written


def run(log: io.StringIO, steps: int, **options) -> None:
    with tqdm(total=steps, file=Lines(log), mininterval=0, disable=False, desc="imagine", **options) as bar:
        for _ in range(steps):
            log.tick()
            bar.update()


def counts(log: io.StringIO) -> list[str]:
    return [line.split("|")[2].split()[0] for line in log.getvalue().splitlines()]


def test_a_bar_has_a_line_now_and_then_and_one_when_it_is_full(log):
    run(log, 5)
    assert counts(log) == ["2/5", "4/5", "5/5"] and "\r" not in log.getvalue()


def test_a_bar_of_no_time_has_one_line(log):
    for steps in (1, 1):
        run(log, steps)
    assert counts(log) == ["1/1", "1/1"]


def test_a_bar_below_another_fills_no_log(log):
    stream = Lines(log)
    with tqdm(total=1, file=stream, mininterval=0, disable=False, desc="outer") as outer:
        for _ in range(3):
            inner = tqdm(total=2, file=stream, mininterval=0, disable=False, desc="inner", leave=False)
            inner.update(2)
            inner.close()
        outer.update()
    (line,) = log.getvalue().splitlines()
    assert line.startswith("outer: 100%") and "\x1b" not in line


def test_other_words_go_through_as_they_are(log):
    stream = Lines(log)
    with tqdm(total=2, file=stream, mininterval=0, disable=False):
        tqdm.write("stage 1 of 8", file=stream)
        print("a warning", file=stream)
        print("half", end="", file=stream)
        print("", file=stream)
    assert log.getvalue() == "stage 1 of 8\na warning\nhalf\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_keeps_its_bars(log, monkeypatch, terminal):
    log.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", log)
    with logs.lines_without_terminal():
        print("\rhalf", end="", file=sys.stderr)
    assert (log.getvalue() == "\rhalf") == terminal and sys.stderr is log
