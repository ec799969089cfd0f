"""What the suites of this folder share: how they compare with a reference, and the table that ends `make bench`.

The convention: a benchmark that compares something has in its `benchmark.extra_info`
- `reference`: what it is compared with, in a few words ("faiss searches every candidate");
- `reference_seconds`: the least seconds of the reference, in the same run and on the same input;
- `ratio`: `reference_seconds` over our least seconds; above 1, ours is the faster;
- `wanted`: the ratio that is promised, where one is.
The fixture `against` measures and records all four. What else is worth a number (images per second, megabytes) goes
into `extra_info` under a name of its own, and is shown beside. A missed ratio is marked in the table, and fails
nothing: whether a busy machine is fast enough is for the reader to judge, whether the results are equal for the test.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COLUMNS = ("benchmark", "ours", "reference", "ratio", "wanted", "besides")
KNOWN = ("reference", "reference_seconds", "ratio", "wanted")
_rows = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def against(benchmark) -> Callable[..., tuple[Any, Any]]:
    """Times `ours()` and `reference()` in turns, records the comparison, and returns what the two returned.

    `words` says what the reference is, `wanted` the promised ratio. The reference runs before the first
    `reference_rounds` of the `rounds`; both run once more, to warm up, unless `warmup` is off.
    """

    def measure(
        ours: Callable[[], Any],
        reference: Callable[[], Any],
        words: str,
        *,
        wanted: float | None = None,
        rounds: int = 5,
        reference_rounds: int = 3,
        warmup: bool = True,
    ) -> tuple[Any, Any]:
        spent: list[float] = []
        expected = None

        def before() -> None:
            nonlocal expected
            if len(spent) < reference_rounds + warmup:
                start = time.perf_counter()
                expected = reference()
                spent.append(time.perf_counter() - start)

        result = benchmark.pedantic(ours, setup=before, rounds=rounds, warmup_rounds=int(warmup))
        if benchmark.stats is not None:  # with --benchmark-disable nothing is timed
            ratio = min(spent) / benchmark.stats.stats.min
            benchmark.extra_info |= {"reference": words, "reference_seconds": min(spent), "ratio": ratio}
            benchmark.extra_info |= {} if wanted is None else {"wanted": wanted}
        return result, expected

    return measure


@pytest.fixture(autouse=True)
def _recorded(request) -> Iterator[None]:
    """Keeps what a benchmark found for the table."""
    benchmark = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    if benchmark is not None and benchmark.stats is not None:
        row = {"name": request.node.name, "seconds": benchmark.stats.stats.min, **benchmark.extra_info}
        request.config.stash.setdefault(_rows, []).append({"file": request.node.path.stem, **row})


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Prints the table, in the form in which docs/performance.md has it."""
    rows = config.stash.get(_rows, [])
    if not rows:
        return
    terminalreporter.section("ratios")
    terminalreporter.write_line(machine())
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *map(_cells, rows)):
        terminalreporter.write_line(f"| {' | '.join(cells)} |")


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{row['file'].removeprefix('bench_')}: {row['name'].removeprefix('test_').replace('_', ' ')}"
    if "ratio" not in row:
        return [name, duration(row["seconds"]), "", "", "", _besides(row)]
    reference = f"{row['reference']}, {duration(row['reference_seconds'])}"
    missed = "" if row["ratio"] >= row.get("wanted", 0) else " (missed)"
    wanted = f"{row['wanted']:.3g}x{missed}" if "wanted" in row else ""
    return [name, duration(row["seconds"]), reference, f"{row['ratio']:.3g}x", wanted, _besides(row)]


def _besides(row: dict[str, Any]) -> str:
    rest = {key: value for key, value in row.items() if key not in (*KNOWN, "file", "name", "seconds")}
    shown = {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in rest.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


def duration(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:.3g} min"


def machine() -> str:
    """The machine and the libraries that decide about speed, in a line."""
    import torch

    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
