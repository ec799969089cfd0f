"""The commands and configs that the documentation shows are understood, and those for one's own images do what it says."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from pages import ROOT, SMALL, blocks, commands, write_files
from PIL import Image

from openood_dream.cli.reading import keys_and_files
from openood_dream.cli.words import app, configured
from openood_dream.datasets.imglist import write_imglist
from openood_dream.experiment import load_config
from openood_dream.openood import compat

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("own_names")
def test_commands_and_their_configs(page, tmp_path, monkeypatch):
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, *words in commands(page):
        shown = COMMANDS[name]
        while hasattr(shown, "commands"):
            shown = shown.commands[words.pop(0)]
        context = shown.make_context(name, list(words))  # which takes them out of the list
        if "--config" in words:
            load_config(*(keys_and_files(context)[1:] if name == "config" else configured(context)))


def test_pages_show_commands():
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_readme_from_python(tiny, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((digits / "images_classic" / "digits" / "test").rglob("*.png")), "photo.png")
    (text,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(compile(text.replace("benchmarks/digits.yml", tiny.file), "README.md", "exec"), names)  # noqa: S102
    said = capsys.readouterr().out
    assert Path(said.splitlines()[0]).name.startswith("images-knn") and "photo.png" in said


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
