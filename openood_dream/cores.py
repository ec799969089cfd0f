"""How many threads computations get, settled before torch is loaded, which reads it once."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SPINS = 1000  # benchmarks/bench_busy.py: ten times as many are faster still when it is quiet, and half as fast beside others


def settle() -> None:
    """Sets what OpenMP reads when torch is loaded, where nobody has set it and torch is not loaded yet.

    Threads that wait for each other soon sleep (OMP_WAIT_POLICY=PASSIVE) rather than spin: on a machine that is shared,
    spinning ones keep those from running that they wait for. GNU's OpenMP, which torch has on Linux, then spins for SPINS turns,
    a few microseconds, which costs others nothing and is a third faster on a quiet machine than sleeping at once. And there
    are no more threads than cores that the process may use, where a container has fewer than the machine.
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if granted() < available():
        os.environ.setdefault("OMP_NUM_THREADS", str(granted()))


def granted() -> int:
    """The cores that this process may use at a time: those it is allowed to run on, or fewer where its time is limited."""
    return min(available(), quota() or available())


def available() -> int:
    """The cores that this process is allowed to run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = CGROUPS, member: Path = Path("/proc/self/cgroup")) -> int | None:
    """The cores' worth of time that the control groups of this process grant it, rounded up; None: no limit.

    Args:
        root: where control groups are mounted.
        member: the file that names those of this process.
    """
    shares = [share for folder in _folders(root, member) if (share := _share(folder)) is not None]
    return max(1, math.ceil(min(shares))) if shares else None


def _folders(root: Path, member: Path) -> list[Path]:
    """The folders of the process's control groups and of those above them, of both versions."""
    try:
        lines = member.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        inner = base / path.strip("/")
        found += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return found


def _share(folder: Path) -> float | None:
    """The cores' worth of time that a control group grants; None where it sets no limit."""
    try:
        if (folder / "cpu.max").is_file():
            granted, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            granted, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return None if granted == "max" or float(granted) <= 0 else float(granted) / float(period)
    except (OSError, ValueError):
        return None
