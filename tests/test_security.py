"""What a user may trust: nothing is run that data says, nothing leaves its folder, and nothing calls home."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished_runs import Page, make_report, write_run

import openood_dream
from openood_dream.dream.image_set import verify
from openood_dream.dream.images import folder_names
from openood_dream.dream.source import Source, given_source
from openood_dream.reports import plots
from openood_dream.reports.runs import collect
from openood_dream.reports.table import table
from openood_dream.store.artifacts import MANIFEST

PACKAGE = Path(openood_dream.__file__).parent
EVIL = '</script><script>alert("1")</script>'


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, by its dotted name, and every import as a call of `import`."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((ast.unparse(node.func), node))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                found += [(f"import {name}", node) for name in names]
    return found


def test_no_eval_pickle_or_shell():
    banned = {"eval", "exec", "compile", "os.system", "os.popen", "pd.read_pickle", "joblib.load"}
    banned |= {f"import {name}" for name in ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle")}
    for name, call in calls():
        words = {word.arg: ast.unparse(word.value) for word in getattr(call, "keywords", [])}
        assert name not in banned, name
        assert words.get("shell", "False") == words.get("allow_pickle", "False") == "False", name
        assert name != "torch.load" or words.get("weights_only") == "True", ast.unparse(call)
        assert words.get("trust_remote_code", "False") == "False", name


def test_bandit():
    pytest.importorskip("bandit", reason="bandit is not installed")
    # "mean" and "last" are no passwords, and importing subprocess is no call of it
    command = [sys.executable, "-m", "bandit", "-q", "-r", PACKAGE, "--skip", "B105,B107,B404"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------------------ the report


def test_names_are_no_markup(tmp_path):
    changes = {"dataset__name": EVIL, "network__name": EVIL, "outlier_data": EVIL, "postprocessor__name": EVIL}
    rows = [[name, "1", "99", "99", "99", "90"] for name in ("digits", "nearood", EVIL, "farood")]
    folder = write_run(tmp_path, EVIL, 0, "ebo", rows=rows, **changes)
    (folder.parent / "train.json").write_text(json.dumps({"hash": "<b>", "outlier_data": EVIL}))
    runs = collect([tmp_path])
    failed = {"seed": 1, "postprocessor": EVIL, "network": EVIL, "dataset": EVIL, "outlier_data": EVIL, "text": EVIL}
    judged = pd.DataFrame({"class": [EVIL], EVIL: [1.0]})
    figure = plots.training_curves({EVIL: [{"epoch": 1, "loss": 1.0, "val_acc": 90.0}]})
    html = make_report(
        tmp_path,
        runs,
        table=table(runs, failures=[{"method": EVIL, **failed}]),
        stages=[{"name": EVIL, "hash": EVIL}],
        settings={"dream": {"class_names": [EVIL], EVIL: EVIL}},
        versions={EVIL: EVIL},
        figures={f"image_grid: {EVIL}": figure, EVIL: figure},
        notes=[EVIL],
        commands=[EVIL],
        judged={EVIL: judged},
    )
    assert "alert(" not in html.replace("alert(&#34;", "")
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own, which sorts
    assert {attrs["alt"] for tag, attrs in page.tags if tag == "img"} == {f"image_grid: {EVIL}", EVIL}
    assert page.text.count(EVIL) >= 20 and "<b>" in page.text


# ----------------------------------------------------------------------------------------------------- folders, network


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "/etc", "a\\b", "~", "shards", "manifest.json", "a\0b"])
def test_class_folders(name, tmp_path):
    (folder,) = folder_names([name])
    path = (tmp_path / folder / "0.png").resolve()
    assert path.parent.parent == tmp_path.resolve()
    assert folder not in ("shards", "images.parquet", "imglist.txt", MANIFEST)


def test_long_class_names_have_folders_of_their_own(tmp_path):
    folders = folder_names(["x" * 300 + "a", "x" * 300 + "b", "é" * 300])
    assert len(set(folders)) == 3
    for folder in folders:
        (tmp_path / folder).mkdir()


def test_class_named_like_a_path(tiny, dream, tmp_path):
    names = '["../../x", "a/b", "..", "shards", "/tmp/y", "<script>"]'
    config = tiny.config("--root", str(tmp_path / "out"), "--dream.class_names", names)
    images = config.imagination.images
    files = pd.read_parquet(images.path / "images.parquet")["file"]
    assert all((images.path / file).resolve().is_relative_to(images.path.resolve()) for file in files)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dream"]
    assert verify(images.path)[1] == {}


@pytest.fixture
def no_network(monkeypatch):
    """Every connection and every look-up of a host's address fails the test."""

    def connect(*args):
        raise AssertionError(f"a connection to {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_no_network_without_a_hub_id(no_network, command, tiny, dream, pipeline_folder, tmp_path):
    where = ["--root", tmp_path / "new", "--dream.cache_dir", tmp_path / "dream"]
    local = ["--dream.generator", pipeline_folder, "--dream.class_names", "[cat, dog, A, high, quality, image]"]
    assert command("anchors", "--config", tiny.file, *where).code == 0
    assert command("anchors", "--config", tiny.file, *where, *local).code == 0
    assert command("train", "--config", tiny.file, "benchmarks/methods/base.yml", *where).code == 0
    assert command("imagine", "--config", tiny.file, "--dream.synthesis.seed", "5").code == 0
    assert command("doctor").code == 0


def test_hub_revision():
    asked = []

    class Loader:
        from_pretrained = staticmethod(lambda path, **kwargs: asked.append((path, kwargs)))

    source = given_source("owner/name", "0123abc", "dream.generator")
    assert isinstance(source, Source)
    source.load(Loader, subfolder="unet")
    assert asked == [("owner/name", {"revision": "0123abc", "subfolder": "unet"})]
    assert source.identity == {"hub": "owner/name", "revision": "0123abc"}


def test_one_place_opens_images():
    """Where the formats are those that start no program."""
    opens = [file.name for file in PACKAGE.rglob("*.py") if "Image.open(" in file.read_text(encoding="utf-8")]
    assert opens == ["reading.py"]
