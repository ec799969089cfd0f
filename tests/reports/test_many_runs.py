"""A leaderboard of hundreds of runs takes seconds, and holds every one of them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from finished_runs import write_run


@pytest.mark.slow
def test_three_hundred_runs(tmp_path):
    for number in range(300):
        write_run(tmp_path, f"m{number // 3}", number % 3)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "openood_dream", "leaderboard", tmp_path, "--format", "json"]
    rows = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert len(rows) == 100 and {row["seeds"] for row in rows} == {3}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of CPU, on a busy machine too
    print(f"300 runs: {seconds:.1f} s of CPU")
    assert seconds < 4
