"""How the command ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import pytest

from openood_dream.ending import exit_code
from openood_dream.errors import InputError, warn


def raising(error: Exception):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    "error, code", [(InputError("k: bad"), 2), (OSError("disk"), 1), (FloatingPointError("loss"), 1)]
)
def test_an_error_is_one_line_and_a_code(error, code, capsys):
    assert exit_code(raising(error)) == code
    assert capsys.readouterr().err == f"openood-dream: error: {error}\n"


def test_messages_do_nothing_to_a_terminal(capsys):
    text = "a\x1b[2J\x9b\r\nb"
    assert exit_code(raising(InputError(text))) == 2 and exit_code(raising(OSError(text))) == 1
    exit_code(lambda: warn(text))
    assert not set(capsys.readouterr().err) & set("\x1b\x9b\r")


def test_a_command_that_returns_nothing_ends_in_0():
    assert exit_code(lambda: None) == 0


def test_a_warning_is_printed_once_as_a_line(capsys):
    assert exit_code(lambda: [warn("3 images\nare left"), warn("3 images are left")] and 0) == 0
    assert capsys.readouterr().err == "openood-dream: warning: 3 images are left\n"


def test_the_warnings_of_others_are_left_to_python():
    with pytest.warns(RuntimeWarning, match="theirs"):
        exit_code(lambda: warnings.warn("theirs", RuntimeWarning, stacklevel=1))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_is_short_is_one_line(capsys, error):
    assert exit_code(raising(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory" in line and "batch" in line


# ------------------------------------------------------------------------------------------------------- signals

HINT = "openood-dream: error: interrupted; run the same command again to go on where it stopped"
# A command that works until it is interrupted, and then cleans up for as long as it is told.
WORK = """
import sys, time
from pathlib import Path
from openood_dream import ending

def command():
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        time.sleep(float(sys.argv[1]))
        Path(sys.argv[2]).write_text("clean")
        return ending.INTERRUPTED

sys.exit(ending.exit_code(command))
"""
# Starts that command as a benchmark starts a job.
BOSS = """
import os, subprocess, sys
os.environ["OPENOOD_DREAM_PARENT"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True).wait()
"""


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", *map(str, words)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, preexec_fn=heard, **pipes)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_first_signal_lets_clean_up(tmp_path, name):
    process = start(WORK, 0, tmp_path / "mark")
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=60)[1].splitlines() == [HINT] and process.returncode == 130
    assert (tmp_path / "mark").exists()


def test_second_signal_of_another_kind_ends_at_once(tmp_path):
    process = start(WORK, 60, tmp_path / "mark")
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(signal.SIGTERM)
    assert "stopped at once" in process.communicate(timeout=30)[1] and process.returncode == 130
    assert not (tmp_path / "mark").exists()


def test_ignored_signals_stay_ignored(tmp_path):
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{WORK}"
    process = start(code, 0, tmp_path / "mark")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1].splitlines() == [HINT]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells processes that their parent ended")
def test_job_ends_with_its_parent_however_that_ends(tmp_path):
    boss = start(BOSS, WORK, 0, tmp_path / "mark")
    boss.kill()
    assert boss.communicate(timeout=60)[1].splitlines() == [HINT]  # of the job, which holds the pipe until it ends
    assert (tmp_path / "mark").exists()
