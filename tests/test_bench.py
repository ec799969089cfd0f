"""The pytest plugin that compares speeds: what it measures, what it costs others, and the ten lines of docs/performance.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import EMPTY, Tiny
from pages import ROOT, write_files

from openood_dream import bench
from openood_dream.openood import compat

INSTALLED = "[pytest11]\nopenood_dream.bench = pytest_openood_dream\n"


class Benchmark:
    """pytest-benchmark's fixture, as far as it is used."""

    def __init__(self) -> None:
        self.stats, self.extra_info = SimpleNamespace(stats=SimpleNamespace(min=0.0)), {}

    def pedantic(self, target, setup, teardown, rounds, warmup_rounds):
        spent = []
        for number in range(warmup_rounds + rounds):
            setup()
            start = time.perf_counter()
            found = target()
            if number >= warmup_rounds:
                spent.append(time.perf_counter() - start)
            teardown()
        self.stats.stats.min = min(spent)
        return found


def test_ratio():
    benchmark, calls = Benchmark(), []

    def work(name: str, seconds: float) -> str:
        calls.append(name)
        time.sleep(seconds)
        return name

    found = bench.against(
        benchmark, lambda: work("ours", 0.01), lambda: work("theirs", 0.04), "theirs", wanted=9, rounds=3
    )
    assert found == ("ours", "theirs") and calls == ["theirs", "ours"] * 4
    assert 2 < benchmark.extra_info["ratio"] < 6 and benchmark.extra_info["reference_seconds"] > 0.04
    row = bench.table([{"file": "bench_a", "name": "test_b_c", "seconds": 0.01, **benchmark.extra_info}])[-1]
    assert re.fullmatch(r"\| a: b c \| 10 ms \| theirs, 4\d(\.\d)? ms \| [2-6](\.\d+)?x \| 9x \(missed\) \|  \|", row)


def test_waits_for_the_gpu(monkeypatch):
    """Before and after each of the two, so that no work of one counts for the other."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    bench.against(Benchmark(), lambda: calls.append("ours"), lambda: calls.append("theirs"), "", rounds=1, warmup=False)
    assert calls[:1] == ["wait"] and [one for one, before in zip(calls[1:], calls) if not one == before == "wait"] == [
        "theirs",
        "wait",
        "ours",
        "wait",
    ]


def config(tiny: Tiny) -> list[str]:
    return [tiny.file]


@pytest.mark.parametrize("name,words", [("base", ()), ("oe", ()), ("vos", ("--trainer.start_epoch", "0"))])
def test_training(tiny, name, words):
    assert bench.training(config(tiny), name, *words)()[1]["loss"] > 0


@pytest.mark.parametrize("name", ["msp", "gradnorm", "vim"])
def test_scoring(tiny, name):
    words = ("--postprocessor.postprocessor_args.dim", "4") if name == "vim" else ()
    _, conf, labels = bench.scoring(config(tiny), name, *words)()
    assert conf.shape == labels.shape == (bench.IMAGES,)


@pytest.mark.parametrize("name", ["knn", "boundary", "plain"])
def test_sampling(tiny, name):
    assert len(bench.sampling(config(tiny), name)()["embeddings"])


@pytest.mark.openood
@pytest.mark.skipif(not compat.installed("openood"), reason="OpenOOD is not installed")
@pytest.mark.parametrize(
    "work,name,words",
    [(bench.training, "base", ()), (bench.training, "oe", ("--trainer.lambda_oe", "0.5")), (bench.scoring, "dice", ())],
)
def test_methods_of_openood(tiny, work, name, words):
    cuda = torch.Tensor.cuda
    work(config(tiny), name, "--backend", "openood", *words)()
    assert torch.Tensor.cuda is cuda  # as it was


# ------------------------------------------------------------------------------------------------------ in pytest's process


def environment(folder: Path) -> dict[str, str]:
    """That of a user's pytest where this package is installed, which an editable one from before may not say."""
    about = folder / "about" / "stand_in-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(INSTALLED)
    paths = [str(about.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    others = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTEST_"))}
    return {**others, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)


def test_costs_others_nothing(tmp_path):
    text = """
        import os, sys
        def test_others():
            assert "pytest_openood_dream" in sys.modules
            assert not {"openood_dream", "torch", "numpy"} & set(sys.modules)
            assert "OMP_WAIT_POLICY" not in os.environ
    """
    (tmp_path / "test_others.py").write_text("\n".join(line[8:] for line in text.splitlines()))
    done = run(tmp_path, "-p", "no:benchmark", "test_others.py")
    assert done.returncode == 0 and "ratios" not in done.stdout, done.stdout


def test_without_pytest_benchmark(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(against):\n    pass\n")
    done = run(tmp_path, "-p", "no:benchmark", "test_it.py")
    assert done.returncode == 1 and "pip install 'openood-dream[bench]'" in done.stdout, done.stdout


def test_setup_names_the_plugin():
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\n"openood_dream.bench" = "pytest_openood_dream"' in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", pytest.param("openood", marks=pytest.mark.openood)])
def test_the_ten_lines(tmp_path, tiny, name):
    """As a file of a user's own, on a config of the same name with numbers for a test."""
    if name == "openood" and not (
        compat.installed("openood") and Path(compat.folder("openood"), "../configs").is_dir()
    ):
        pytest.skip("there is no checkout of OpenOOD")
    for page in ("extend", "performance"):
        write_files(ROOT / "docs" / f"{page}.md", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "digits.yml").write_text(Path(tiny.file).read_text())
    (tmp_path / "benchmarks" / "empty.yml").write_text(EMPTY)
    file = tmp_path / f"bench_{name}.py"
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10
    if name == "openood":
        (tmp_path / "OpenOOD").symlink_to(Path(compat.folder("openood")).parent)
    done = run(tmp_path, file.name)
    assert done.returncode == 0, done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {name}: ")]
    assert len(rows) == len(re.findall("^def ", file.read_text(), re.M)) and all("x" in row[3] for row in rows)
