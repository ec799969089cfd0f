"""Artifacts: what survives a crash, a rerun, a neighbour and a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from openood_dream.errors import InputError
from openood_dream.store import artifacts, steps
from openood_dream.store.files import fingerprint, write_text
from openood_dream.store.tensors import read_tensors, write_tensors


def test_made_once_then_reused(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "result.txt").write_text("42")
        return {"accuracy": 0.5, "shape": (2, 3)}

    first, second = (artifacts.build(tmp_path, "space", {"k": 1}, make) for _ in range(2))
    assert len(calls) == 1 and (first.reused, second.reused) == (False, True)
    assert first.path == second.path == artifacts.folder_of(tmp_path, "space", {"k": 1})
    assert first.path == artifacts.folder_of(tmp_path, "space", {"k": 1})
    assert first.manifest == second.manifest and first.manifest["shape"] == [2, 3]
    assert first.stage == "space" and first.hash == fingerprint({"k": 1}) and first.manifest["inputs"] == {"k": 1}
    assert first.manifest["seconds"] >= 0 and first.manifest["accuracy"] == 0.5


def test_other_inputs_make_another_and_keep_the_old(tmp_path):
    first = artifacts.build(tmp_path, "space", {"k": 1}, lambda folder: (folder / "x").write_text("1") and None)
    second = artifacts.build(tmp_path, "space", {"k": 2}, lambda folder: (folder / "x").write_text("2") and None)
    assert not second.reused and first.path != second.path and (first.path / "x").read_text() == "1"


def test_a_folder_is_named_by_stage_label_and_hash(tmp_path):
    found = artifacts.build(tmp_path, "images", {"k": 1}, lambda folder: None, label="knn, sigma/0.15")
    assert found.path.name == f"images-knn-sigma-0.15-{fingerprint({'k': 1})[:8]}" and found.label == "knn, sigma/0.15"
    assert artifacts.folder_of(tmp_path, "images", {"k": 1}, "x" * 200).name.count("x") == 40
    again = artifacts.build(tmp_path, "images", {"k": 1}, lambda folder: pytest.fail("made"), label="knn, sigma/0.15")
    assert again.reused and again.label == found.label


def test_a_folder_of_the_same_name_and_another_hash_is_refused(tmp_path):
    folder = artifacts.build(tmp_path, "space", {"k": 1}, lambda folder: None).path
    other = artifacts.folder_of(tmp_path, "space", {"k": 2})
    os.rename(folder, other)
    with pytest.raises(InputError, match="not those of its hash"):
        artifacts.build(tmp_path, "space", {"k": 2}, lambda folder: None)


def test_steps_are_told_when_they_begin_and_when_they_are_done(tmp_path):
    heard = []
    with steps.heard_by(heard.append):
        for _ in range(2):
            made = artifacts.build(tmp_path, "space", {}, lambda folder: heard.append("at work"))
        with artifacts.reusing_only():
            artifacts.build(tmp_path, "space", {}, lambda folder: None)
    assert [step if isinstance(step, str) else step[:2] for step in heard] == [
        ("space", None),
        "at work",
        ("space", made.path),
        ("space", made.path),
    ]
    assert heard[2].seconds == made.manifest["seconds"] and heard[3].seconds is None


def test_interrupted_is_continued(tmp_path):
    def make(folder):
        done = folder / "half.txt"
        if not done.exists():
            done.write_text("first half")
            raise KeyboardInterrupt
        return {"found": done.read_text()}

    with pytest.raises(KeyboardInterrupt):
        artifacts.build(tmp_path, "images", {}, make)
    assert artifacts.complete(artifacts.folder_of(tmp_path, "images", {})) is None
    artifact = artifacts.build(tmp_path, "images", {}, make)
    assert not artifact.reused and artifact.manifest["found"] == "first half"
    assert artifacts.build(tmp_path, "images", {}, make).reused


def test_reusing_only_makes_nothing(tmp_path):
    with artifacts.reusing_only():
        with pytest.raises(artifacts.Missing, match="space"):
            artifacts.build(tmp_path, "space", {}, lambda folder: pytest.fail("made it all the same"))
    assert os.listdir(tmp_path) == []
    artifacts.build(tmp_path, "space", {}, lambda folder: None)
    with artifacts.reusing_only():
        assert artifacts.build(tmp_path, "space", {}, lambda folder: None).reused


def test_two_processes_make_it_once(tmp_path):
    code = """
import sys, time
from pathlib import Path
from openood_dream.store.artifacts import build

def make(folder):
    with open(folder / "log", "a") as log:
        log.write("made\\n")
    while len(list(Path(sys.argv[1]).glob("started-*"))) < 2:  # until the other one is on its way too
        time.sleep(0.01)
    time.sleep(0.3)

Path(sys.argv[1], "started-" + sys.argv[2]).touch()
print(build(sys.argv[1], "space", {"k": 1}, make).reused)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE, text=True) for n in range(2)]
    outputs = [process.communicate(timeout=600)[0].strip() for process in both]
    assert sorted(outputs) == ["False", "True"]
    assert (artifacts.folder_of(tmp_path, "space", {"k": 1}) / "log").read_text() == "made\n"


def test_waiting_is_said(tmp_path, capfd):
    folder = artifacts.folder_of(tmp_path, "space", {})
    code = """
import sys
from pathlib import Path
from openood_dream.store.artifacts import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", code, str(folder)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    threading.Timer(0.5, holder.stdin.close).start()
    artifacts.build(tmp_path, "space", {}, lambda folder: None)
    assert holder.wait() == 0
    assert capfd.readouterr().err == f"waiting for another run that makes {folder}\n"


def test_killed_run_leaves_no_lock_and_no_litter(tmp_path):
    code = """
import os, signal, sys
from openood_dream.store.artifacts import build
from openood_dream.store.files import replacing

def make(folder):
    with replacing(folder / "big.txt") as work:
        work.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

build(sys.argv[1], "space", {}, make)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    folder = artifacts.folder_of(tmp_path, "space", {})
    assert len(os.listdir(folder)) == 1
    artifacts.build(tmp_path, "space", {}, lambda folder: None)
    assert os.listdir(folder) == ["manifest.json"] and os.listdir(tmp_path) == [folder.name]


def test_bad_input_leaves_no_folder(tmp_path):
    def make(folder):
        raise InputError("no such generator")

    with pytest.raises(InputError, match="no such generator"):
        artifacts.build(tmp_path / "new" / "cache", "anchors", {}, make)
    assert os.listdir(tmp_path) == []


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    def make(folder):
        if not (folder / "first").exists():
            write_text(folder / "first", "1")
        write_text(folder / "second", "2")
        return {"first": (folder / "first").stat().st_mtime_ns}

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space left on device; what is finished is kept"),
    ):
        patch.setattr(artifacts, "write_json", lambda *args: full(tmp_path))
        artifacts.build(tmp_path, "space", {}, make)
    folder = artifacts.folder_of(tmp_path, "space", {})
    assert sorted(os.listdir(folder)) == ["first", "second"]
    first = (folder / "first").stat().st_mtime_ns
    assert artifacts.build(tmp_path, "space", {}, make).manifest["first"] == first


def test_disk_errors_from_rust_are_one_line(tmp_path):
    with pytest.raises(OSError, match=rf"{tmp_path}: No space left on device; .* go on$"):
        with artifacts.writing_in(tmp_path):
            raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("content", ['{"hash": ', "[1]"])
def test_damaged_manifest_is_named(tmp_path, content):
    folder = artifacts.build(tmp_path, "space", {}, lambda folder: None).path
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: .*delete the folder"):
        artifacts.build(tmp_path, "space", {}, lambda folder: None)


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")  # holds for root too, which permission bits would not stop
    target = tmp_path / "file" / "cache"
    with pytest.raises(InputError) as caught:
        artifacts.build(target, "space", {}, lambda folder: pytest.fail("made it all the same"))
    assert str(target) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_exclusive_folder_is_removed_only_if_unused(tmp_path):
    with artifacts.exclusive(tmp_path / "a" / "run"):
        pass
    assert os.listdir(tmp_path) == []
    with artifacts.exclusive(tmp_path / "a" / "run") as _:
        (tmp_path / "a" / "run" / "result").touch()
    assert os.listdir(tmp_path / "a" / "run") == ["result"]


# --------------------------------------------------------------------------------------------- power failures, rights


def test_all_is_on_the_disk_before_the_manifest(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def named(work: Path, path: Path) -> None:
        synced.append(str(path))
        replace(work, path)

    def make(folder: Path) -> None:  # as libraries write, which bring nothing to the disk
        (folder / "unet" / "deep").mkdir(parents=True)
        (folder / "unet" / "deep" / "weights").write_text("1")
        (folder / "text").write_text("1")

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", named)
    folder = artifacts.build(tmp_path, "generator", {}, make).path
    done = synced.index(str(folder / "manifest.json"))
    before, after = synced[:done], synced[done + 1 :]
    files = [folder / "unet/deep/weights", folder / "text", folder / "unet/deep", folder / "unet", folder, tmp_path]
    assert set(map(str, files)) <= set(before) and str(folder) in after


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_umask_decides_who_may_read_what_libraries_wrote(tmp_path, mask, mode):
    def make(folder: Path) -> None:
        (folder / "weights").touch(0o600)

    before = os.umask(mask)
    try:
        folder = artifacts.build(tmp_path, "generator", {}, make).path
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}


def test_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    write_tensors(tmp_path / "a.safetensors", a=torch.ones(1))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not str(path).endswith("a.safetensors"))
    with pytest.raises(InputError, match=r"a\.safetensors: cannot be read \(Permission denied\)"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_file_system_without_locks_is_named(tmp_path, monkeypatch, error):
    def acquire(*args, **options):
        raise error

    monkeypatch.setattr(artifacts.FileLock, "acquire", acquire)
    with pytest.raises(InputError, match=rf"{tmp_path}.*\.lock: this file system has no locks .*NFS"):
        artifacts.build(tmp_path, "space", {}, lambda folder: None)
