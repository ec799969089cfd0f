"""How the command ends."""

from __future__ import annotations

import warnings

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
