"""The records of runs: found wherever they lie, and refused where they are damaged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from finished_runs import write_run

from openood_dream.errors import InputError
from openood_dream.reports import records
from openood_dream.reports.runs import collect


def test_linked_folders_are_followed_once(tmp_path):
    run = write_run(tmp_path / "elsewhere").parent
    (tmp_path / "in" / "runs").mkdir(parents=True)
    (tmp_path / "in" / "runs" / "linked").symlink_to(run, target_is_directory=True)
    (run / "up").symlink_to(tmp_path / "in", target_is_directory=True)
    found = records.find(tmp_path / "in", "ood.csv", "train.json")
    assert found == [tmp_path / "in" / "runs" / "linked" / name for name in ("ebo/ood.csv", "train.json")]
    assert len(collect([tmp_path / "in"])) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_run(tmp_path, "base")
    closed = write_run(tmp_path, "oe").parent
    scandir = os.scandir

    def refused(path):
        if os.fspath(path) == os.fspath(closed):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=rf"^{closed}: cannot be read \(Permission denied\)"):
        collect([tmp_path])


@pytest.mark.parametrize(
    "text", ["[1]", "null", "{}", '{"hash": 1}', '{"hash": "a", "inputs": [1]}', "[" * 100_000, "{"]
)
@pytest.mark.parametrize("name", ["train.json", "ebo/evaluate.json"])
def test_a_damaged_record_is_named(tmp_path, command, name, text):
    path = write_run(tmp_path).parent / name
    path.write_text(text)
    done = command("leaderboard", tmp_path)
    assert (done.code, done.out, len(done.err)) == (2, "", 1)
    assert str(path) in done.err[0] and "delete its folder" in done.err[0]


def test_networks_of_the_imagination_are_no_runs(tmp_path):
    paths = [tmp_path / name / "train.json" for name in ("s0", "teacher-0123")]
    assert records.run_folders(paths) == [tmp_path / "s0"]


def test_leaderboard_starts_without_torch(tmp_path):
    write_run(tmp_path)
    code = "import sys; from openood_dream import cli; cli.app(standalone_mode=False); print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "leaderboard", str(tmp_path), "--format", "csv"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
