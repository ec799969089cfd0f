"""The commands and configs that the documentation shows are understood, and those for one's own images do what it says."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from openood_dream.cli.words import app, configured
from openood_dream.datasets.imglist import write_imglist
from openood_dream.experiment import load_config
from openood_dream.openood import compat

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page that are of a language."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for named, text in every if named == language]


def commands(page: Path) -> list[list[str]]:
    """The openood-dream command lines of a page, as words."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("openood-dream ")]


def write_files(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that begin with the name of a YAML or Python file."""
    for text in [*blocks(page, "yaml"), *blocks(page, "python")]:
        if match := re.match(r"# ([\w/]+\.(yml|py))\n", text):
            (folder / match[1]).parent.mkdir(exist_ok=True)
            (folder / match[1]).write_text(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("own_names")
def test_commands_and_their_configs(page, tmp_path, monkeypatch):
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, *words in commands(page):
        shown = COMMANDS[name]
        while hasattr(shown, "commands"):
            shown = shown.commands[words.pop(0)]
        context = shown.make_context(name, words)
        if "--config" in words:
            load_config(*configured(context))


def test_pages_show_commands():
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# The config of docs/own-data.md, made small.
SMALL = """
device: cpu
precision: float32
num_workers: 0
num_gpus: 0
backend: BACKEND
dataset: {pre_size: 16, image_size: 16, num_workers: 0}
ood_dataset: {num_workers: 0}
preprocessor: {name: base}
network: {name: 'timm:resnet10t', args: {channels: [8, 8, 16, 16]}}
optimizer: {num_epochs: 1, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}
dream:
  generator: {train: small, steps: 30, vae_steps: 15, batch_size: 16, text_dim: 16}
  space: {network: 'timm:resnet10t', network_args: {channels: [8, 8, 16, 16]}, epochs: 2, batch_size: 16}
  outliers: {k: 3, sigma: 0.3, select: 5, n_boundary: 3, n_draws: 20, rounds: 1}
  synthesis: {per_class: 4, steps: 2, guidance: 2.0, size: 16, save_size: 16}
  filter: {distance: 0.01}
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["standalone", pytest.param("openood", marks=pytest.mark.openood)])
def test_own_data_from_lists_to_table(tmp_path, monkeypatch, command, backend):
    if backend == "openood" and not compat.installed("openood"):
        pytest.skip("OpenOOD is not installed")
    page = ROOT / "docs" / "own-data.md"
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("small.yml").write_text(SMALL.replace("BACKEND", backend))
    bird = "one bird" if backend == "standalone" else "one_bird"  # OpenOOD splits lines at their first space
    rng, names = np.random.default_rng(0), ["robin", "great_tit", "nuthatch"]

    def images(name: str, count: int, label: int) -> list[tuple[str, int]]:
        """Images of a colour of their own in noise."""
        rows = [(f"{name}/{bird}_{number}.png", label) for number in range(count)]
        colour = rng.integers(0, 200, 3)
        for file, _ in rows:
            (path := Path("birds") / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + rng.integers(0, 56, (20, 20, 3))).astype(np.uint8)).save(path)
        return rows

    every = [images(name, 24, label) for label, name in enumerate(names)]
    for split, part in {"train": slice(0, 16), "val": slice(16, 20), "test": slice(20, 24)}.items():
        write_imglist(Path("birds") / f"{split}.txt", [row for rows in every for row in rows[part]])
    for name in ("val_ood", "test_other_birds", "test_planes"):
        write_imglist(Path("birds") / f"{name}.txt", images(name, 8, -1))
    for words in commands(page):
        if "--config" in words:
            words.insert(words.index("birds.yml") + 1, "small.yml")
        if words[0] == "evaluate":
            (checkpoint,) = Path("results").rglob("best.ckpt")
            words[words.index("--network.checkpoint") + 1] = str(checkpoint)
        done = command(*words)
        assert done.code == 0, (words, done.err)
    (row,) = csv.DictReader(command("leaderboard", "results", "--format", "csv").out.splitlines())
    assert (row["method"], row["postprocessor"], row["outlier_data"]) == ("dream_ood", "ebo", "imagined (knn)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_tests_that_pages_name_are_there(page):
    assert [
        name for name in re.findall(r"tests/[\w/]+\.py", page.read_text("utf-8")) if not (ROOT / name).is_file()
    ] == []
