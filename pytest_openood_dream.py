"""The pytest plugin of openood-dream: the fixture `against`, and the table of ratios at the end.

pytest imports it in every project of an environment that has openood-dream. So it lies outside the package, whose import
settles the number of threads, and imports nothing but pytest before a test asks for its fixture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

INSTALL = "pip install 'openood-dream[bench]'"
_rows = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def against(request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Times `ours()` and `reference()` in turns: against(ours, reference, words); see openood_dream.bench.against."""
    from openood_dream import bench

    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.fail(f"the fixture against needs pytest-benchmark; {INSTALL}", pytrace=False)
    benchmark = request.getfixturevalue("benchmark")
    yield functools.partial(bench.against, benchmark)
    record(request, benchmark)


def record(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """Keeps what pytest-benchmark found in a test for the table."""
    if benchmark.stats is not None and benchmark.stats.stats.data:  # else nothing was timed
        row = {"name": request.node.name, "seconds": benchmark.stats.stats.min, **benchmark.extra_info}
        request.config.stash.setdefault(_rows, []).append({"file": request.node.path.stem, **row})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the table, in the form in which docs/performance.md has it."""
    rows = config.stash.get(_rows, [])
    if rows:
        from openood_dream import bench

        terminalreporter.section("ratios")
        for line in bench.table(rows):
            terminalreporter.write_line(line)
