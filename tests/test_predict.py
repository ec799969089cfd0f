"""The command predict: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from openood_dream.evaluators.verdicts import Verdicts
from openood_dream.pipelines.detector import Detector


@pytest.fixture(scope="module")
def run(benchmarked, tmp_path_factory) -> Path:
    """A finished run of the benchmark, to write in."""
    folder = tmp_path_factory.mktemp("predict") / "s0"
    shutil.copytree(benchmarked.root / "runs" / "base" / "s0", folder)
    return folder


@pytest.fixture
def photos(digits, tmp_path) -> Path:
    """Two digits and a scrambled one, in folders."""
    there, photos = digits / "images_classic" / "digits", tmp_path / "photos"
    for number, name in enumerate(("test/zero", "test/one", "test_scrambled")):
        (photos / str(number)).mkdir(parents=True)
        shutil.copy(sorted((there / name).rglob("*.png"))[0], photos / str(number) / "a.png")
    return photos


def test_formats_say_the_same(command, run, photos):
    found = Detector.load(run)(photos)
    rows = json.loads(command("predict", "--run", run, "--format", "json", photos).out)
    assert rows == found.to_records() and len(rows) == 3
    assert set(rows[0]) == {"image", "class", "label", "score", "threshold", "verdict"}
    lines = list(csv.DictReader(command("predict", "--run", run, "--format", "csv", photos).out.splitlines()))
    assert lines == [{key: str(value) for key, value in row.items()} for row in rows]
    shown = command("predict", "--run", run, photos)
    assert shown.code == 0 and not shown.err
    assert f"of 3 ID: ebo (temperature 1) from {found.threshold:.4g} on, which 95 %" in " ".join(shown.out.split())
    assert all(row["class"] in shown.out and row["verdict"] in shown.out for row in rows)


def test_a_file_to_write_to(command, run, photos, tmp_path):
    out = tmp_path / "new" / "found.csv"
    done = command("predict", "--run", run, "--format", "csv", "--out", out, photos)
    assert done.code == 0 and done.out.strip() == str(out)
    assert out.read_text() == command("predict", "--run", run, "--format", "csv", photos).out


def test_other_detectors_and_shares(command, run, photos):
    strict = command("predict", "--run", run / "knn", "--keep", "0.5", "--format", "json", photos).out
    loose = command("predict", "--run", run, "--postprocessor", "knn", "--format", "json", photos).out
    strict, loose = json.loads(strict), json.loads(loose)
    assert [row["score"] for row in strict] == [row["score"] for row in loose]
    assert strict[0]["threshold"] > loose[0]["threshold"]


def test_odd_files_have_a_line_each(command, run, photos):
    (photos / "text.png").write_text("no image")
    os.mkfifo(photos / "pipe.png")
    done = command("predict", "--run", run, "--format", "json", photos)
    assert done.code == 1 and len(json.loads(done.out)) == 3
    assert [line.startswith("openood-dream: error: ") and "broken image" in line for line in done.err] == [True] * 2
    done = command("predict", "--run", run, photos / "text.png")
    assert (done.code, done.out, len(done.err)) == (2, "", 1)


def test_names_do_nothing_to_terminals_and_spreadsheets(command, run, photos, monkeypatch):
    image = photos / "0" / "a.png"
    names = ["=1+1.png", "e\x1b[31mvil.png", "two\nlines.png", "\u202eback.png", "del\x7f.png", "caf\udce9.png"]
    for name in names:
        shutil.copy(image, photos / name)
    monkeypatch.chdir(photos)
    for form in ("table", "csv", "json"):
        out = command("predict", "--run", run, "--format", form, *names).out
        assert not set(out) & set("\x1b\x7f\u202e\udce9") and "two\nlines" not in out, form
        if form == "csv":
            assert [row["image"][:2] for row in csv.DictReader(out.splitlines())][0] == "'="
        if form == "json":
            assert [row["image"] for row in json.loads(out)] == names
    shown = Detector.load(run)([photos / names[1]])._repr_html_()
    assert "\x1b" not in shown and "vil.png" in shown


def test_a_notebook_shows_a_table(run, photos):
    found = Detector.load(run)(photos)
    assert isinstance(found, Verdicts) and len(found) == 3
    assert found._repr_html_().count("<tr") == 4 and found.summary() in found._repr_html_()
    assert found.to_pandas()["verdict"].tolist() == ["ID" if one else "OOD" for one in found.is_id]
    with pytest.raises(AttributeError):
        found.threshold = 0.0
    (photos / "<b>.png").write_bytes((photos / "0" / "a.png").read_bytes())
    assert "<b>" not in Detector.load(run)(photos / "<b>.png")._repr_html_()


@pytest.mark.parametrize(
    "words, line",
    [
        ("--run {tmp}/none {image}", r"/none: no such folder; expected the folder of a finished training"),
        ("--run {tmp} {image}", r": has no config\.yml; expected the folder of a finished training"),
        ("--run {tmp}/started {image}", "started: its training is not finished"),
        ("--run {tmp}/weightless {image}", r"best\.ckpt: no such checkpoint"),
        ("--run {tmp}/config {image}", r"config: has no best\.ckpt; expected"),
        ("--run {run} --postprocessor ebq {image}", "postprocessor: unknown 'ebq'; did you mean 'ebo'"),
        ("--run {run} --postprocessor frl {image}", "frl scores generative networks"),
        ("--run {run} --keep 0 {image}", "keep: expected a share"),
        ("--run {run} --keep nan {image}", "keep: expected a share"),
        ("--run {run} --keep much {image}", "Invalid value for '--keep'"),
        ("--run {run} --device cuda:99 {image}", "device: 'cuda:99' cannot be used here"),
        ("--run {run} --format xml {image}", "Invalid value for '--format'"),
        ("--run {run} {tmp}/none.png", r"none\.png: no such file or folder"),
        ("--run {run} {tmp}/empty", "images: there are none"),
        ("--run {run}", "Missing argument"),
        ("{image}", "Missing option '--run'"),
    ],
)
def test_bad_input_has_one_line(command, run, photos, tmp_path, words, line):
    for name in ("started", "weightless", "config", "empty"):
        (tmp_path / name).mkdir()
    for name in ("weightless", "config"):
        shutil.copy(run / "config.yml", tmp_path / name)
    (tmp_path / "started" / "training.json").write_text("{}")
    shutil.copy(run / "train.json", tmp_path / "weightless")
    image = photos / "0" / "a.png"
    done = command("predict", *words.format(tmp=tmp_path, run=run, image=image).split())
    assert (done.code, done.out, len(done.err)) == (2, "", 1)
    assert re.search(line, done.err[0]), done.err
