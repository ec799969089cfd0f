"""What the suites of this folder share. How they compare is the fixture `against` of our pytest plugin (`openood_dream.bench`).

What else is worth a number (images per second, megabytes) goes into `benchmark.extra_info` under a name of its own, and is
shown beside. A missed ratio is marked in the table, and fails nothing: whether a busy machine is fast enough is for the
reader to judge, whether the results are equal for the test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_openood_dream import record


@pytest.fixture(autouse=True)
def _recorded(request) -> Iterator[None]:
    """A row of the table for a benchmark without a reference, too."""
    alone = "benchmark" in request.fixturenames and "against" not in request.fixturenames
    benchmark = request.getfixturevalue("benchmark") if alone else None
    yield
    if benchmark is not None:
        record(request, benchmark)
