"""Artifacts and image sets on disk: what survives a crash, a rerun, a neighbour and a typing mistake."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from openood_dream import store
from openood_dream.config import InputError

# ------------------------------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_the_same_in_every_process_and_for_every_order_of_keys():
    inputs = {"b": [1, 2.5, None, True], "a": {"y": "é", "x": -1e-3}}
    same = {"a": {"x": -0.001, "y": "é"}, "b": [1, 2.5, None, True]}
    code = f"from openood_dream.store import fingerprint; print(fingerprint({inputs!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert store.fingerprint(inputs) == store.fingerprint(same) == other.stdout.strip()


@pytest.mark.parametrize("other", [{"k": 2}, {"k": "1"}, {"k": True}, {"k": [1]}, {"K": 1}, {"k": 1, "l": None}, {}])
def test_any_change_of_the_inputs_changes_the_fingerprint(other):
    assert store.fingerprint({"k": 1}) != store.fingerprint(other)


def test_the_fingerprint_of_known_inputs_never_changes_between_versions():
    assert store.fingerprint({"stage": "anchors", "k": 1}) == "c884349d9f84226f"  # sha256 of the sorted, dense JSON


# ------------------------------------------------------------------------------------------------------- atomic files


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="crash"):
        with store.replacing(path) as work:
            work.write_text("half of the n")
            raise RuntimeError("crash")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_nobody_sees_a_file_before_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with store.replacing(path) as work:
        work.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]


def test_files_can_be_read_by_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        store.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_json_text_and_tensors_come_back_as_they_were(tmp_path):
    view = torch.arange(12.0).reshape(3, 4).T  # not contiguous, which safetensors refuses
    store.write_tensors(tmp_path / "t.safetensors", view=view, labels=torch.tensor([1, -1]))
    read = store.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(read["view"], view) and read["labels"].tolist() == [1, -1]
    store.write_json(tmp_path / "v.json", {"name": "Zürich", "n": 1})
    assert json.loads((tmp_path / "v.json").read_text(encoding="utf-8")) == {"name": "Zürich", "n": 1}


def test_a_damaged_tensor_file_is_named(tmp_path):
    path = tmp_path / "t.safetensors"
    store.write_tensors(path, a=torch.ones(1000))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"t\.safetensors: not a readable safetensors file .* run again"):
        store.read_tensors(path)


# ---------------------------------------------------------------------------------------------------------- artifacts


def test_an_artifact_is_made_once_and_then_reused(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "result.txt").write_text("42")
        return {"accuracy": 0.5, "shape": (2, 3)}

    first, second = (store.build(tmp_path, "space", {"k": 1}, make) for _ in range(2))
    assert len(calls) == 1 and (first.reused, second.reused) == (False, True)
    assert first.path == second.path == tmp_path / f"space-{store.fingerprint({'k': 1})}"
    assert first.manifest == second.manifest and first.manifest["shape"] == [2, 3]
    assert first.stage == "space" and first.hash == store.fingerprint({"k": 1}) and first.manifest["inputs"] == {"k": 1}
    assert first.manifest["seconds"] >= 0 and first.manifest["accuracy"] == 0.5


def test_a_change_of_the_inputs_makes_another_artifact_and_keeps_the_old(tmp_path):
    first = store.build(tmp_path, "space", {"k": 1}, lambda folder: (folder / "x").write_text("1") and None)
    second = store.build(tmp_path, "space", {"k": 2}, lambda folder: (folder / "x").write_text("2") and None)
    assert not second.reused and first.path != second.path and (first.path / "x").read_text() == "1"


def test_an_interrupted_artifact_is_not_taken_for_complete_and_is_continued(tmp_path):
    def make(folder):
        done = folder / "half.txt"
        if not done.exists():
            done.write_text("first half")
            raise KeyboardInterrupt
        return {"found": done.read_text()}

    with pytest.raises(KeyboardInterrupt):
        store.build(tmp_path, "images", {}, make)
    assert store.complete(tmp_path / f"images-{store.fingerprint({})}") is None
    artifact = store.build(tmp_path, "images", {}, make)
    assert not artifact.reused and artifact.manifest["found"] == "first half"
    assert store.build(tmp_path, "images", {}, make).reused


def test_two_processes_that_want_the_same_artifact_make_it_once(tmp_path):
    code = """
import sys, time
from pathlib import Path
from openood_dream import store

def make(folder):
    with open(folder / "log", "a") as log:
        log.write("made\\n")
    while len(list(Path(sys.argv[1]).glob("started-*"))) < 2:  # until the other one is on its way too
        time.sleep(0.01)
    time.sleep(0.3)

Path(sys.argv[1], "started-" + sys.argv[2]).touch()
print(store.build(sys.argv[1], "space", {"k": 1}, make).reused)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE, text=True) for n in range(2)]
    outputs = [process.communicate(timeout=600)[0].strip() for process in both]
    assert sorted(outputs) == ["False", "True"]
    assert (tmp_path / f"space-{store.fingerprint({'k': 1})}" / "log").read_text() == "made\n"


def test_whoever_waits_for_another_run_says_so(tmp_path, capfd):
    folder = tmp_path / f"space-{store.fingerprint({})}"
    code = """
import sys
from pathlib import Path
from openood_dream import store
with store.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", code, str(folder)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    threading.Timer(0.5, holder.stdin.close).start()
    store.build(tmp_path, "space", {}, lambda folder: None)
    assert holder.wait() == 0
    assert capfd.readouterr().err == f"waiting for another run that makes {folder}\n"


def test_a_killed_run_holds_no_lock_and_its_temporary_files_go(tmp_path):
    code = """
import os, signal, sys
from openood_dream import store

def make(folder):
    with store.replacing(folder / "big.txt") as work:
        work.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

store.build(sys.argv[1], "space", {}, make)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    folder = tmp_path / f"space-{store.fingerprint({})}"
    assert len(os.listdir(folder)) == 1
    store.build(tmp_path, "space", {}, lambda folder: None)
    assert os.listdir(folder) == ["manifest.json"] and os.listdir(tmp_path) == [folder.name]


def test_bad_input_leaves_no_folder_behind(tmp_path):
    def make(folder):
        raise InputError("no such generator")

    with pytest.raises(InputError, match="no such generator"):
        store.build(tmp_path, "anchors", {}, make)
    assert os.listdir(tmp_path) == []


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_in_one_line_and_what_is_finished_stays(tmp_path, monkeypatch):
    def make(folder):
        if not (folder / "first").exists():
            store.write_text(folder / "first", "1")
        store.write_text(folder / "second", "2")
        return {"first": (folder / "first").stat().st_mtime_ns}

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space left on device; what is finished is kept"),
    ):
        patch.setattr(store, "write_json", lambda *args: full(tmp_path))
        store.build(tmp_path, "space", {}, make)
    folder = tmp_path / f"space-{store.fingerprint({})}"
    assert sorted(os.listdir(folder)) == ["first", "second"]
    first = (folder / "first").stat().st_mtime_ns
    assert store.build(tmp_path, "space", {}, make).manifest["first"] == first


def test_a_damaged_manifest_is_named(tmp_path):
    folder = store.build(tmp_path, "space", {}, lambda folder: None).path
    (folder / "manifest.json").write_text('{"hash": ')
    with pytest.raises(InputError, match=r"manifest\.json: not a readable manifest .*delete the folder"):
        store.build(tmp_path, "space", {}, lambda folder: None)


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")  # holds for root too, which permission bits would not stop
    target = tmp_path / "file" / "cache"
    with pytest.raises(InputError) as caught:
        store.build(target, "space", {}, lambda folder: pytest.fail("made it all the same"))
    assert str(target) in str(caught.value) and "cannot write here" in str(caught.value)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "in the way"


# ----------------------------------------------------------------------------------------------------------- imglists


def test_an_imglist_is_read_whatever_its_names_and_line_ends(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a/b.png 3\r\n\r\nsea horse/öl 1.png -1\r\ndata/c.png 12 \n".encode())
    assert store.read_imglist(path) == [("a/b.png", 3), ("sea horse/öl 1.png", -1), ("data/c.png", 12)]


def test_what_is_written_is_read_back(tmp_path):
    rows = [("sea horse/1.png", 0), ("b.png", -1)]
    store.write_imglist(tmp_path / "list.txt", rows)
    assert store.read_imglist(tmp_path / "list.txt") == rows


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.png 0\nb.png\n", r"list\.txt:2: expected 'path label' with an integer label, got 'b\.png'"),
        ("a.png 0\n\nb.png cat\n", r"list\.txt:3: .* got 'b\.png cat'"),
        ("a.png 0.5\n", r"list\.txt:1: .* got 'a\.png 0\.5'"),
        ("7\n", r"list\.txt:1: .* got '7'"),
        ("\n\n", r"list\.txt: the image list is empty \(dataset\.train\.imglist_pth\)"),
    ],
)
def test_a_mistake_in_an_imglist_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=expected):
        store.read_imglist(tmp_path / "list.txt", "dataset.train.imglist_pth")


def test_a_missing_imglist_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: no such image list \(dataset\.val\.imglist_pth\)"):
        store.read_imglist(tmp_path / "none.txt", "dataset.val.imglist_pth")
    with pytest.raises(InputError, match="cannot read this image list"):
        store.read_imglist(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00 1")
    with pytest.raises(InputError, match=r"binary\.txt:1: expected UTF-8 text, got byte 0xff"):
        store.read_imglist(tmp_path / "binary.txt")


def test_a_list_digest_follows_names_labels_and_contents_but_not_the_place(tmp_path):
    def digest(folder: str, name="a.png", label=0, content=b"12345") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(content)
        store.write_imglist(tmp_path / folder / "list.txt", [(name, label)])
        return store.list_digest(tmp_path / folder / "list.txt", tmp_path / folder, "key")

    first = digest("one")
    assert first == digest("two")
    assert len({first, digest("three", name="b.png"), digest("four", label=1), digest("five", content=b"123456")}) == 4
    (tmp_path / "one" / "a.png").unlink()
    with pytest.raises(InputError, match=r"list\.txt: image '.*one/a\.png' is not there"):
        store.list_digest(tmp_path / "one" / "list.txt", tmp_path / "one", "key")


def same_size_swap(folder: Path) -> None:
    """Two files of one size and one time change places."""
    first, second = folder / "a.png", folder / "b.png"
    first.rename(folder / "c")
    second.rename(first)
    (folder / "c").rename(second)


def test_images_of_one_size_that_change_places_change_the_digest(tmp_path):
    for name, content in (("a.png", b"12345"), ("b.png", b"54321")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (1e9, 1e9))
    store.write_imglist(tmp_path / "list.txt", [("a.png", 0), ("b.png", 1)])
    before = store.list_digest(tmp_path / "list.txt", tmp_path, "key")
    same_size_swap(tmp_path)
    assert store.list_digest(tmp_path / "list.txt", tmp_path, "key") != before


def test_unchanged_files_are_read_once_and_changed_ones_again(tmp_path, monkeypatch):
    reads, sha256, now = [], store.sha256, time.time_ns
    monkeypatch.setattr(store, "sha256", lambda path: reads.append(Path(path).name) or sha256(path))
    monkeypatch.setattr(store.time, "time_ns", lambda: now() + 10**10)  # ten seconds later
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"12345")
    first = store.contents(paths)
    assert store.contents(paths) == first and sorted(reads) == ["a.png", "b.png"]
    inode = paths[0].stat()
    paths[0].write_bytes(b"54321")
    os.utime(paths[0], ns=(inode.st_atime_ns, inode.st_mtime_ns))
    assert store.contents(paths) != first and len(reads) == 4


def test_files_that_just_changed_are_not_remembered(tmp_path, monkeypatch):
    reads, sha256 = [], store.sha256
    monkeypatch.setattr(store, "sha256", lambda path: reads.append(path) or sha256(path))
    (tmp_path / "a.png").write_bytes(b"12345")
    for _ in range(2):  # the clock of files may not have ticked since
        store.contents([tmp_path / "a.png"])
    assert len(reads) == 2


def test_a_cache_folder_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"12345")
    expected = store.contents([tmp_path / "a.png"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a.png"))
    assert store.contents([tmp_path / "a.png"]) == expected


def test_many_files_are_hashed_in_their_order_and_the_missing_ones_are_errors(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(300)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i % 256]) * i)
    paths[7].unlink()
    found = store.hashes(paths, "test")
    assert isinstance(found.pop(7), FileNotFoundError) and paths.pop(7)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


# ------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("total, size", [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_shards_hold_every_image_once_in_order(total, size):
    parts = store.shards(total, size)
    assert [i for part in parts for i in part] == list(range(total)) and max(map(len, parts)) <= size


def test_shards_join_in_order_whoever_wrote_them_first(tmp_path):
    wanted = store.shards(5, 2)
    for number in (2, 0):
        rows = [{"file": f"a b/{i}.png", "label": -1, "seed": i} for i in wanted[number]]
        store.write_table(store.shard_table(tmp_path, number), pd.DataFrame(rows))
    assert store.missing_shards(tmp_path, wanted) == [1]
    store.write_table(
        store.shard_table(tmp_path, 1), pd.DataFrame([{"file": f"c/{i}.png", "label": 3, "seed": i} for i in wanted[1]])
    )
    assert store.missing_shards(tmp_path, wanted) == []
    table = store.join_shards(tmp_path, 3)
    assert table["seed"].tolist() == [0, 1, 2, 3, 4]
    expected = [("a b/0.png", -1), ("a b/1.png", -1), ("c/2.png", 3), ("c/3.png", 3), ("a b/4.png", -1)]
    assert store.read_imglist(Path(tmp_path) / "imglist.txt") == expected
    assert pd.read_parquet(tmp_path / "images.parquet").equals(table)
