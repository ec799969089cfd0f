"""Threads: what is settled before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openood_dream import cores


def environment(code: str, **given: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    names = ["OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT"]
    show = f"; import os; print(*map(os.environ.get, {names}))"
    done = subprocess.run(
        [sys.executable, "-c", code + show], env=clean | given, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise():
    assert environment("import openood_dream")[::2] == ["PASSIVE", "1000"]
    assert environment("import openood_dream", OMP_WAIT_POLICY="ACTIVE")[::2] == ["ACTIVE", "None"]
    assert environment("import openood_dream", GOMP_SPINCOUNT="7")[::2] == ["PASSIVE", "7"]
    assert environment("import torch, openood_dream")[::2] == ["None", "None"]


def test_no_more_threads_than_the_container_has(monkeypatch):
    set_ = "import openood_dream.cores as cores; cores.quota = lambda: 1; cores.available = lambda: 8; cores.settle()"
    assert environment(set_)[1] == "1" and environment(set_, OMP_NUM_THREADS="3")[1] == "3"


@pytest.mark.parametrize(
    ("files", "member", "cores_"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"cpu.max": "max 100000", "a/b/cpu.max": "50000 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpuacct,cpu:/", 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n3:memory:/x", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({}, "0::/gone", None),
    ],
)
def test_quota(tmp_path, files, member, cores_):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "member").write_text(member + "\n")
    assert cores.quota(tmp_path, tmp_path / "member") == cores_


def test_no_control_groups():
    assert cores.quota(member=Path("/nonexistent/cgroup")) is None and cores.available() >= 1
