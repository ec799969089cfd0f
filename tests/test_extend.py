"""Methods of one's own, as docs/extend.md has them: on both hosts, and what becomes of results when their file changes."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import Done, stamps
from pages import ROOT, SMALL, commands, write_files

from openood_dream import plugins, register, unregister
from openood_dream.openood import compat
from openood_dream.trainers.known import TRAINERS

PAGE = ROOT / "docs" / "extend.md"
BACKENDS = ["standalone", pytest.param("openood", marks=pytest.mark.openood)]
EMPTY = "from openood_dream.trainers.base import trainer\n"

pytestmark = pytest.mark.usefixtures("own_names")


@pytest.fixture
def page(tmp_path, monkeypatch, digits, command) -> Callable[..., Done]:
    """Runs the page's command of a name in a folder that has its files, with numbers for a test."""
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("small.yml").write_text(SMALL.replace("BACKEND", "standalone") + "seed: 0\nmerge_option: merge\n")
    shown = {words[0]: words for words in commands(PAGE)}

    def run(name: str, *overrides: object, without: str = "") -> Done:
        words = shlex.split(shlex.join(shown[name]).replace(without, ""))
        last = max(number for number, word in enumerate(words) if word.endswith(".yml"))
        words.insert(last + 1, "small.yml")
        return command(*words, "--data_root", digits, "--dataset.train.batch_size", 64, *overrides)

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_hosts(page, backend):
    if backend == "openood" and not compat.installed("openood"):
        pytest.skip("OpenOOD is not installed")
    for name in ("train", "evaluate"):
        done = page(name, "--backend", backend)
        assert done.code == 0, done.err
    assert Path("results/digits/smooth/best.ckpt").exists()
    rows = {row["dataset"]: float(row["AUROC"]) for row in csv.DictReader(open(Path(done.out.split()[-1]) / "ood.csv"))}
    assert {"near_digits", "nearood", "farood"} <= set(rows) and all(0 < auroc < 100 for auroc in rows.values())


@pytest.mark.openood
@pytest.mark.parametrize("search", [False, True])
def test_hosts_agree_on_scores(page, search):
    if not compat.installed("openood"):
        pytest.skip("OpenOOD is not installed")
    page("train")
    found = []
    given = "--postprocessor.postprocessor_sweep.temperature_list", "[0.5, 1, 5]"
    words = ("--postprocessor.APS_mode", search, *given)
    for backend in ("standalone", "openood"):
        done = page("evaluate", "--backend", backend, "--exp_name", backend, *words)
        assert done.code == 0, done.err
        found.append(pd.read_csv(Path("results") / backend / "ood.csv", index_col="dataset").astype(float))
    assert list(found[0].index) == list(found[1].index)
    np.testing.assert_allclose(found[0], found[1], atol=0.0101)


@pytest.mark.openood
def test_several_processes_of_openood(page):
    """The processes that OpenOOD spawns load the file too."""
    if not compat.installed("openood"):
        pytest.skip("OpenOOD is not installed")
    counts = [word for name in ("num_gpus", "dataset.num_gpus", "network.num_gpus") for word in (f"--{name}", 2)]
    done = page("train", "--backend", "openood", *counts)
    assert done.code == 0, done.err
    assert Path("results/digits/smooth/best.ckpt").exists()


def change() -> None:
    file = Path("my_file.py")
    file.write_text(file.read_text() + "\n# changed\n")


def test_change_of_the_file(page):
    """What was made with its names is not taken for finished; what was not, is."""

    def plain() -> Done:
        smooth = "--trainer.name smooth --trainer.amount 0.2"
        return page("train", "--trainer.name", "base", "--exp_name", "base", without=smooth)

    assert page("train").code == plain().code == page("evaluate").code == 0
    before = stamps(Path("results"))
    assert page("train").code == plain().code == page("evaluate").code == 0  # finished
    assert stamps(Path("results")) == before
    change()
    done = page("train")
    assert done.code == 2 and len(done.err) == 1
    assert "trainer: results/digits/smooth holds a run of another version of the plugin file" in done.err[0]
    assert plain().code == 0
    done = page("evaluate")
    assert done.code == 2 and "postprocessor: results/smooth/entropy holds scores of another version" in done.err[0]
    assert stamps(Path("results")) == before
    assert page("train", "--exp_name", "again").code == 0  # what the line offers


def test_sampler(page):
    def outliers() -> set[Path]:
        done = page("outliers")
        assert done.code == 0, done.err
        return set(Path("results/digits/dream").glob("*-*"))

    first = outliers()
    (folder,) = (path for path in first if path.name.startswith("outliers"))
    assert (pd.read_parquet(folder / "outliers.parquet")["distance"] > 0).all()
    assert outliers() == first
    change()
    new = outliers() - first  # those alone
    assert [path.name.partition("-")[0] for path in new] == ["outliers"]


def test_verdicts(page, command, digits):
    """`predict` knows a postprocessor of one's own by --plugin, and finds the threshold anew where its file changed."""
    for name in ("train", "evaluate"):
        assert page(name).code == 0
    image = next(Path(digits).rglob("*.png"))
    words = ("predict", "--run", "results/smooth/entropy", "--format", "json", image, "--plugin", "my_file.py")
    done = command(*words)
    assert done.code == 0, done.err
    (record,) = Path("results").rglob("detectors/entropy.json")
    before = record.read_text()
    assert command(*words).out == done.out and record.read_text() == before
    change()
    assert command(*words).code == 0 and record.read_text() != before


@pytest.mark.slow
@pytest.mark.parametrize("where", [("--jobs", 2), ("--executor", "ray")], ids=["processes", "ray"])
def test_benchmark(page, where):
    """Its jobs run in processes of their own."""
    if "ray" in where:
        pytest.importorskip("ray", reason="Ray is not installed; pip install 'openood-dream[ray]'")
    done = page("benchmark", *where, "--seeds", 1)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(open("results/mine/leaderboard.csv")))
    assert {(row["method"], row["postprocessor"]) for row in rows} == {
        (method, score) for method in ("base", "smooth") for score in ("msp", "entropy")
    }
    assert "--plugin my_file.py" in Path("results/mine/report.html").read_text()


# ------------------------------------------------------------------------------------------------------------ bad plugins

ONE = f"""{EMPTY}from openood_dream.trainers.base import BaseTrainer
from openood_dream.trainers.settings import TrainerSettings
class Settings(TrainerSettings):
    pass
"""
CONFIG = ["config", "--config", "benchmarks/digits.yml"]


def registers(name: str) -> str:
    return ONE + f"@trainer({name!r}, Settings)\nclass Mine(BaseTrainer):\n    pass\n"


@pytest.mark.parametrize(
    "text,line",
    [
        (None, r"--plugin my_file.py: expected a Python file (No such file or directory)"),
        ("", "--plugin my_file.py: registers nothing; expected a class below @trainer"),
        (EMPTY, "--plugin my_file.py: registers nothing"),
        ("import no_such_module\n", "my_file.py:1: ModuleNotFoundError: No module named 'no_such_module')"),
        ("x = 1\nx.y\n", "my_file.py:2: AttributeError"),
        ("def\n", "--plugin my_file.py: cannot be imported (SyntaxError: "),
        ("import sys\nsys.exit(3)\n", "my_file.py:2: SystemExit: 3)"),
        (
            registers("vos"),
            "--plugin my_file.py: the trainer 'vos' exists already, in openood_dream.trainers.vos; choose",
        ),
        (registers("logitnorm"), "--plugin my_file.py: the trainer 'logitnorm' exists already, in OpenOOD; choose"),
        (registers("mine") + "1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, command, text, line):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("my_file.py").write_text(text)
    done = command(*CONFIG, "--plugin", "my_file.py", "--trainer.name", "mine")
    assert done.code == 2 and len(done.err) == 1 and line in done.err[0], done.err
    assert "mine" not in TRAINERS and sorted(path.name for path in tmp_path.iterdir()) in ([], ["my_file.py"])


def test_two_files_with_one_name(tmp_path, command):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(registers("mine"))
    done = command(*CONFIG, "--plugin", tmp_path / "a.py", f"--plugin={tmp_path / 'b.py'}")
    assert done.code == 2 and "b.py: the trainer 'mine' exists already, in a_" in done.err[0]


@pytest.mark.parametrize("words", [[*CONFIG, "--plugin"], ["init", "--data", "x", "--plugin", "my_file.py"]])
def test_words(command, words):
    done = command(*words)
    assert done.code == 2 and "--plugin" in done.err[0]


def test_unknown_without_it(command):
    done = command("train", "--config", "benchmarks/digits.yml", "--trainer.name", "smooth")
    assert done.code == 2 and "unknown 'smooth'" in done.err[0]


# ----------------------------------------------------------------------------------------------------------- entry points


def install(folder: Path, module: str, text: str | None) -> None:
    """What pip leaves of a package with one module and one entry point."""
    about = folder / f"{module}_dist-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[openood_dream.plugins]\nmine = {module}\n")
    if text is not None:
        (folder / f"{module}.py").write_text(text)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a module for the test."""

    def add(module: str, text: str | None) -> None:
        install(tmp_path, module, text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)
        plugins.load_installed.cache_clear()

    yield add
    for name in [name for name in sys.modules if name.startswith("installed_")]:
        del sys.modules[name]


def test_entry_point(installed, command, tmp_path):
    installed("installed_fine", registers("mine"))
    done = command(*CONFIG, "--trainer.name", "mine")
    assert done.code == 0 and "name: mine" in done.out
    assert plugins.identity(TRAINERS["mine"])["plugin"]
    assert "installed_fine: trainer mine" in command("doctor").out


@pytest.mark.parametrize(
    "text,line",
    [
        (None, "plugin installed_bad: cannot be imported ("),
        (
            "1 / 0",
            "installed_bad.py:1: ZeroDivisionError: division by zero); repair it, or pip uninstall installed_bad-dist",
        ),
        (EMPTY, "plugin installed_bad: registers nothing"),
        (
            registers("oe"),
            "plugin installed_bad: the trainer 'oe' exists already, in openood_dream.trainers.oe; choose",
        ),
    ],
)
def test_bad_entry_points(installed, command, text, line):
    installed("installed_bad", text)
    done = command(*CONFIG)
    assert done.code == 2 and len(done.err) == 1 and line in done.err[0], done.err
    assert line.partition(":")[0] in " ".join(command("doctor").out.split())


@pytest.mark.openood
def test_entry_point_in_a_main_of_openood(installed):
    if not compat.installed("openood"):
        pytest.skip("OpenOOD is not installed")
    installed("installed_main", registers("mine"))
    register()
    try:
        assert "mine" in TRAINERS
    finally:
        unregister()


def test_help_names_it():
    done = subprocess.run([sys.executable, "-m", "openood_dream", "train", "--help"], capture_output=True, text=True)
    assert "--plugin" in done.stdout
