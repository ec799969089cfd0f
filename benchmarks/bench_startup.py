"""How long a user waits before anything happens: the command's help, the import, and doctor, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = {
    "import": ["-c", "import openood_dream"],
    "help": ["-m", "openood_dream", "--help"],
    "doctor": ["-m", "openood_dream", "doctor"],
}


def run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["import", "help"])
def test_start(against, name):
    """Against the import of torch, which neither needs."""
    against(lambda: run(COMMANDS[name]), lambda: run(["-c", "import torch"]), "import torch", wanted=2)


def test_doctor(benchmark):
    benchmark.pedantic(run, (COMMANDS["doctor"],), rounds=3, warmup_rounds=1)
