"""`latest/<stage>` leads to the newest artifact of a stage, whoever made it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openood_dream.store.artifacts import build
from openood_dream.store.latest import point


def made(root: Path, number: int, stage: str = "images") -> Path:
    return build(root, stage, {"number": number}, lambda folder: None, label="knn").path


def test_leads_to_the_newest_of_each_stage(tmp_path):
    first, second, other = made(tmp_path, 1), made(tmp_path, 2), made(tmp_path, 1, "quality")
    made(tmp_path, 1)  # reused, so not newer
    assert (tmp_path / "latest" / "images").resolve() == second != first
    assert (tmp_path / "latest" / "quality").resolve() == other
    assert sorted(os.listdir(tmp_path / "latest")) == ["images", "quality"]


def test_moves_with_its_folder(tmp_path):
    folder = made(tmp_path / "old", 1)
    (tmp_path / "old").rename(tmp_path / "new")
    assert (tmp_path / "new" / "latest" / "images").resolve() == tmp_path / "new" / folder.name


def test_what_has_no_label_is_not_looked_for(tmp_path):
    build(tmp_path, "pass", {}, lambda folder: None)
    assert not (tmp_path / "latest").exists()


def test_a_text_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *args, **options: (_ for _ in ()).throw(OSError("no links")))
    made(tmp_path, 1)
    folder = made(tmp_path, 2)
    assert os.listdir(tmp_path / "latest") == ["images.txt"]
    assert (tmp_path / "latest" / "images.txt").read_text() == f"{folder}\n"


@pytest.mark.parametrize("taken", ["latest", "latest/images/file"])
def test_what_a_user_put_there_stays(tmp_path, taken):
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    made(tmp_path, 1)
    assert (tmp_path / taken).read_text() == "mine"


def test_several_processes_at_once_leave_one_whole_link(tmp_path):
    code = "import sys; from pathlib import Path; from openood_dream.store.latest import point\n"
    code += "for n in range(200): point(Path(sys.argv[1], f'images-{sys.argv[2]}-{n}'), 'images')"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    found = set()
    (tmp_path / "images-c-0").mkdir()
    point(tmp_path / "images-c-0", "images")
    while any(process.poll() is None for process in both):
        found.add(os.readlink(tmp_path / "latest" / "images"))  # FileNotFoundError where it were gone for a moment
    assert [process.wait() for process in both] == [0, 0] and os.listdir(tmp_path / "latest") == ["images"]
    assert os.readlink(tmp_path / "latest" / "images").endswith("-199") and len(found) > 1
