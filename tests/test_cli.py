"""The command: what it offers, what it prints, how it ends."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from helpers import without_warnings

import openood_dream
from openood_dream import __version__
from openood_dream import run as runner
from openood_dream.cli import jobs
from openood_dream.cli.words import configured
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.pipelines import benchmark as benchmarking
from openood_dream.pipelines import stages

HEAVY = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "timm",
    "sklearn",
    "pandas",
    "numpy",
    "matplotlib",
    "faiss",
)
COMMANDS = [
    "quickstart",
    "run",
    "anchors",
    "space",
    "generator",
    "outliers",
    "imagine",
    "train",
    "evaluate",
    "predict",
    "benchmark",
    "leaderboard",
    "verify",
    "config",
    "doctor",
    "plot",
]
ALIASES = {"sample": "outliers", "synthesize": "imagine"}
FIGURES = ["embeddings", "grid", "line"]


def python(code: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_switch_before_an_option():
    words = ["--compile", "--config", "a.yml", "b.yml", "--seed", "1", "--quiet", "--trainer.beta", "-1"]
    files, overrides = configured(SimpleNamespace(args=words, info_name="train"))
    assert files == ["a.yml", "b.yml"] and overrides == ["--compile", "--seed", "1", "--trainer.beta", "-1"]


# ------------------------------------------------------------------------------------------------------- a light start


@pytest.mark.parametrize("module", ["openood_dream", "openood_dream.cli", "openood_dream.config.merge"])
def test_import_is_cheap(module):
    done = python(f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_help_is_cheap_and_complete():
    code = f"""
import sys
from openood_dream.cli import main
sys.argv = ["openood-dream", "--help"]
try:
    main()
except SystemExit as end:
    print("ended", end.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python(code)
    assert done.stdout.splitlines()[-1] == "ended 0 []", done.stderr
    for name in COMMANDS:
        assert f"  {name} " in done.stdout, name
    assert not any(f"  {name} " in done.stdout for name in ALIASES)


def test_door():
    """What the package exports is what its home has; all of it is there, and nothing else."""
    for name in openood_dream.__all__:
        assert getattr(openood_dream, name) is not None
        assert name in dir(openood_dream)
    assert openood_dream.load_config is load_config
    with pytest.raises(AttributeError, match="'openood_dream' has no attribute 'nonsense'"):
        openood_dream.nonsense  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(command, name):
    done = command(name, "--help")
    assert done.code == 0 and name in done.out and not done.err
    takes_configs = name not in ("quickstart", "predict", "leaderboard", "verify", "doctor", "plot")
    assert (
        "--config A.yml B.yml ... [--plugin FILE.py ...] [--key value ...]" in " ".join(done.out.split())
    ) == takes_configs


@pytest.mark.parametrize("name", FIGURES)
def test_help_of_a_figure(command, name):
    assert f"  {name} " in command("plot", "--help").out
    done = command("plot", name, "--help")
    assert done.code == 0 and "--config A.yml B.yml ... [--plugin FILE.py ...] [--key value ...]" in " ".join(
        done.out.split()
    )


def test_version(command):
    assert command("--version").out.strip() == __version__


def test_no_command_and_an_unknown_one(command):
    done = command()
    assert all(name in " ".join([done.out, *done.err]) for name in COMMANDS)  # older versions of typer print it
    done = command("quikstart")
    assert done.code == 2 and "quikstart" in " ".join(done.err)


# ------------------------------------------------------------------------------------------------ configs and overrides


@pytest.mark.parametrize(
    "words, files, overrides",
    [
        (["--config", "a.yml", "b.yml"], ["a.yml", "b.yml"], []),
        (["--config", "a.yml", "--k", "1", "--config", "b.yml"], ["a.yml", "b.yml"], ["--k", "1"]),
        (["--config=a.yml", "--x.y=-1", "--z", "-2"], ["a.yml"], ["--x.y=-1", "--z", "-2"]),
        (["--seed", "3", "-c", "a.yml", "b.yml", "--quiet"], ["a.yml", "b.yml"], ["--seed", "3"]),
        (["--config", "a.yml", "--names", "[a, b]", "--empty", ""], ["a.yml"], ["--names", "[a, b]", "--empty", ""]),
    ],
)
def test_files_and_overrides_in_any_order(command, monkeypatch, words, files, overrides):
    given = []
    monkeypatch.setattr(runner, "run", lambda *both: given.append(both))
    assert command("run", *words).code == 0
    assert given == [(files, overrides)]


@pytest.mark.parametrize("name", ["run", "train", "anchors", "benchmark"])
def test_no_config(command, name):
    assert command(name, "--seed", "1") == (
        2,
        "",
        [f"openood-dream: error: {name}: no config; expected --config A.yml B.yml ..."],
    )


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("a.yml: k: expected\nan integer"), 2, "openood-dream: error: a.yml: k: expected an integer"),
        (FloatingPointError("epoch 1: the loss is nan"), 1, "openood-dream: error: epoch 1: the loss is nan"),
        (
            KeyboardInterrupt(),
            130,
            "openood-dream: error: interrupted; run the same command again to go on where it stopped",
        ),
    ],
)
def test_errors_end_in_one_line(command, monkeypatch, error, code, line):
    def fails(*args):
        raise error

    monkeypatch.setattr(runner, "run", fails)
    assert command("run", "--config", "a.yml") == (code, "", [line])


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("name", ["anchors", "space", "generator", "outliers", "sample", "imagine", "synthesize"])
def test_stage(command, tiny, dream, name):
    stage = ALIASES.get(name, name)
    artifact, quality = getattr(dream, {"imagine": "images"}.get(stage, stage)), dream.quality
    done = command(name, "--config", tiny.file)
    assert done.code == 0 and done.out.startswith(f"{artifact.path} (reused)\n") and done.err == []
    if stage == "imagine":
        assert f"{quality.path} (reused)\n" in done.out and "judged by" in done.out


def test_dry_run(command, tiny, dream):
    done = command("imagine", "--config", tiny.file, "--dry-run")
    assert done.code == 0 and done.out.startswith("images  24 (6 classes of 4)") and not done.err


def test_verify(command, dream, tmp_path):
    done = command("verify", dream.images.path)
    assert (done.code, done.out) == (0, f"{dream.images.path}: 24 images, all as recorded\n")
    copy = tmp_path / dream.images.path.name
    shutil.copytree(dream.images.path, copy)
    victim = next(copy.rglob("*.png"))
    victim.write_bytes(b"broken")
    done = command("verify", copy)
    assert done.code == 1 and victim.name in done.out and "rm " in done.out and "1 problems" in done.err[0]


def test_config(command, tiny):
    done = command("config", "--config", tiny.file, "pipelines/train/dream_ood.yml", "--trainer.beta", "2.5")
    lines = [line.strip() for line in done.out.splitlines()]
    assert f"seeds: [0, 1]  # {tiny.file}" in lines and "beta: 2.5  # command line" in lines
    assert "name: dream_ood  # pipelines/train/dream_ood.yml" in lines
    assert (
        yaml.safe_load(done.out)
        == load_config([tiny.file, "pipelines/train/dream_ood.yml"], ["--trainer.beta", "2.5"]).to_dict()
    )
    assert command("config", "--config", tiny.file, "--seed", "x").code == 2


def test_train_and_evaluate(command, tiny, tmp_path):
    where = ["--root", tmp_path]
    done = command("train", "--config", tiny.file, "benchmarks/methods/base.yml", *where)
    run = tmp_path / "runs" / "base" / "s0"
    assert (done.code, done.out, done.err) == (0, f"{run}\n", [])
    layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/msp.yml"]
    where = ["--output_dir", tmp_path, "--exp_name", "scores", "--network.checkpoint", run / "best.ckpt"]
    done = command("evaluate", "--config", *layers, *where)
    assert (done.code, done.out, done.err) == (0, f"{tmp_path / 'scores'}\n", [])
    assert (tmp_path / "scores" / "ood.csv").exists()


def test_plot(command, tiny, dream, tmp_path):
    done = command("plot", "embeddings", "--config", tiny.file, "--class", "two", "--out", tmp_path / "a b.png")
    assert (done.code, done.out, done.err) == (0, f"{tmp_path / 'a b.png'}\n", [])
    assert (tmp_path / "a b.png").read_bytes().startswith(b"\x89PNG")


def test_options_of_a_figure_in_any_order(command, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(stages, "plot", lambda *args, **options: given.append((args, options)))
    words = ["--config", "a.yml", "--class", "great tit", "--k", "1", "--class", "cat", "--outliers", "knn, b.yml"]
    assert command("plot", "embeddings", *words, "--method", "umap").code == 0
    assert command("plot", "line", "--out", "a.png", "--config", "a.yml", "b.yml").code == 0
    assert given == [
        (
            ("embeddings", ["a.yml"], ["--k", "1"], ["great tit", "cat"], None),
            {"outliers": ["knn", "b.yml"], "method": "umap"},
        ),
        (("line", ["a.yml", "b.yml"], [], [], Path("a.png")), {}),
    ]


def test_benchmark_shows_the_leaderboard(command, tiny, benchmarked):
    done = command("benchmark", "--config", tiny.file, "--jobs", 1, *benchmarked.overrides)
    assert done.code == 0 and done.out.splitlines()[-1] == f"Report: {benchmarked.report}"
    board = pd.read_csv(benchmarked.root / "leaderboard.csv")
    for value in board["near_auroc"]:
        assert f"{value:.2f}" in done.out
    assert {"base", "oe", "dream_ood", "msp", "ebo", "knn"} <= set(done.out.split())


def test_leaderboard_formats(command, benchmarked, tmp_path):
    runs = benchmarked.root / "runs"
    rows = json.loads(command("leaderboard", runs, "--format", "json").out)
    keys = (
        "method postprocessor near_auroc far_auroc near_fpr95 far_fpr95 id_acc seeds outlier_data network notes".split()
    )
    assert len(rows) == 9 and set(keys) <= set(rows[0]) and {"near_auroc_std", "id_acc_std"} <= set(rows[0])
    assert len(list(csv.DictReader(command("leaderboard", runs, "--format", "csv").out.splitlines()))) == 9
    assert command("leaderboard", runs / "base", runs / "oe", "--format", "md").out.count("\n| ") == 1 + 6
    assert r"\begin{tabular}" in command("leaderboard", runs, "--format", "tex").out
    assert "dream_ood" in command("leaderboard", runs).out
    for fmt in ("html", "json"):
        out = tmp_path / f"board.{fmt}"
        assert command("leaderboard", runs, "--format", fmt, "--out", out).out.strip() == str(out)
        assert "dream_ood" in out.read_text()


def test_quickstart_is_the_shipped_benchmark(command, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(benchmarking, "benchmark", lambda *all_of_it: given.append(all_of_it))
    monkeypatch.setattr(jobs, "show", lambda report: None)
    assert command("quickstart", "--out", tmp_path / "a b", "--seeds", "1", "--methods", "base, oe,").code == 0
    ((files, overrides, methods, seeds, executor, workers),) = given
    assert files == ["benchmarks/digits.yml"] and (methods, seeds) == (["base", "oe"], 1)
    assert executor == "local" and workers in (1, 2)
    config = load_config(files, overrides).run
    assert config.data_root == str(tmp_path / "a b") + "/data"
    assert str(config.folder).startswith(str(tmp_path / "a b"))


# -------------------------------------------------------------------------------------------------------- progress bars


def run_fresh(*words: object, quiet: bool) -> subprocess.CompletedProcess:
    """The command in a process of its own, since bars are switched when tqdm is imported."""
    code = "import os, sys; os.environ.pop('TQDM_DISABLE'); from openood_dream.cli import main; main()"
    return python(code, *map(str, words), *["--quiet"][: int(quiet)])


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_bars_unless_quiet(tiny, dream, tmp_path, quiet):
    caches = ["--dream.cache_dir", tmp_path / "dream", "--root", tmp_path]
    generator = ["--dream.generator", dream.generator.path]  # a given one, so that nothing takes long
    done = run_fresh("imagine", "--config", tiny.file, *caches, *generator, quiet=quiet)
    assert done.returncode == 0, done.stderr
    if quiet:
        assert without_warnings(done.stderr) == [] and "%|" not in done.stderr
    else:
        for stage in ("space: training the encoder", "outliers: sampling", "imagine: drawing images"):
            assert f"{stage}: 100%" in done.stderr
        assert "00:00<00:00" in done.stderr or "<00:" in done.stderr
