"""Files: whole or not there, read back as they were, and fingerprints of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from openood_dream.errors import InputError
from openood_dream.store import files, tensors

# ------------------------------------------------------------------------------------------------------ fingerprints


def test_fingerprint_does_not_depend_on_process_or_key_order():
    inputs = {"b": [1, 2.5, None, True], "a": {"y": "é", "x": -1e-3}}
    same = {"a": {"x": -0.001, "y": "é"}, "b": [1, 2.5, None, True]}
    code = f"from openood_dream.store.files import fingerprint; print(fingerprint({inputs!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert files.fingerprint(inputs) == files.fingerprint(same) == other.stdout.strip()


@pytest.mark.parametrize("other", [{"k": 2}, {"k": "1"}, {"k": True}, {"k": [1]}, {"K": 1}, {"k": 1, "l": None}, {}])
def test_fingerprint_changes_with_inputs(other):
    assert files.fingerprint({"k": 1}) != files.fingerprint(other)


def test_fingerprint_is_stable_across_versions():
    assert files.fingerprint({"stage": "anchors", "k": 1}) == "c884349d9f84226f"  # sha256 of the sorted, dense JSON


def test_hashes_keep_order_and_errors(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(300)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i % 256]) * i)
    paths[7].unlink()
    found = files.hashes(paths, "test")
    assert isinstance(found.pop(7), FileNotFoundError) and paths.pop(7)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


# ---------------------------------------------------------------------------------------------------------- contents


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that are hashed while the test runs."""
    names: list[str] = []
    sha256 = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: names.append(Path(path).name) or sha256(path))
    return names


def test_unchanged_files_are_read_once(tmp_path, monkeypatch, reads):
    now = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 10**10)  # ten seconds later
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"12345")
    first = files.contents(paths)
    assert files.contents(paths) == first and sorted(reads) == ["a.png", "b.png"]
    inode = paths[0].stat()
    paths[0].write_bytes(b"54321")
    os.utime(paths[0], ns=(inode.st_atime_ns, inode.st_mtime_ns))
    assert files.contents(paths) != first and len(reads) == 4


def test_fresh_files_are_not_remembered(tmp_path, reads):
    (tmp_path / "a.png").write_bytes(b"12345")
    for _ in range(2):  # the clock of files may not have ticked since
        files.contents([tmp_path / "a.png"])
    assert len(reads) == 2


def test_looked_once_remembers_even_fresh_files(tmp_path, reads, monkeypatch):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(path.name.encode())
    stats, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: stats.append(str(path)) or stat(path, **options))
    with files.looked_once():
        first = files.contents(paths)
        with files.looked_once():
            assert files.contents(paths) == first
        assert files.contents(list(map(str, paths))) == first and files.contents(paths[:1]) != first
    assert [stats.count(str(path)) for path in paths] == [1, 1] and reads == ["a.png", "b.png", "a.png"]
    paths[0].write_bytes(b"other")
    assert files.contents(paths) != first


def test_looked_once_does_not_remember_errors(tmp_path):
    with files.looked_once():
        with pytest.raises(FileNotFoundError):
            files.contents([tmp_path / "a.png"])
        (tmp_path / "a.png").write_bytes(b"12345")
        assert files.contents([tmp_path / "a.png"])


def test_unwritable_user_cache_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"12345")
    expected = files.contents([tmp_path / "a.png"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a.png"))
    assert files.contents([tmp_path / "a.png"]) == expected


# ----------------------------------------------------------------------------------------------------------- writing


def test_crash_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="crash"):
        with files.replacing(path) as work:
            work.write_text("half of the n")
            raise RuntimeError("crash")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with files.replacing(path) as work:
        work.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]


def test_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_json_comes_back(tmp_path):
    files.write_json(tmp_path / "v.json", {"name": "Zürich", "n": 1})
    assert json.loads((tmp_path / "v.json").read_text(encoding="utf-8")) == {"name": "Zürich", "n": 1}
    assert files.read_record(tmp_path / "v.json") == {"name": "Zürich", "n": 1}


# ---------------------------------------------------------------------------------------- tensors, checkpoints, tables


def test_tensors_come_back(tmp_path):
    view = torch.arange(12.0).reshape(3, 4).T  # not contiguous, which safetensors refuses
    tensors.write_tensors(tmp_path / "t.safetensors", view=view, labels=torch.tensor([1, -1]))
    read = tensors.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(read["view"], view) and read["labels"].tolist() == [1, -1]


def test_checkpoint_comes_back(tmp_path):
    state = {"net": {"weight": torch.arange(3.0)}, "epoch": 2, "name": "oe", "rows": [1, 2.5]}
    tensors.write_checkpoint(tmp_path / "a.ckpt", state)
    read = tensors.read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read["net"].pop("weight"), state["net"].pop("weight")) and read == state
    with pytest.raises(FileNotFoundError):
        tensors.read_checkpoint(tmp_path / "none.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(InputError, match=r"list\.ckpt"):
        tensors.read_checkpoint(tmp_path / "list.ckpt")


# --------------------------------------------------------------------------------------------------- rows in many files


def write_parts(folder: Path, sizes: list[int], name: str = "z") -> torch.Tensor:
    """Writes random rows (sum of sizes, 3, 2) in parts of these sizes with their index, and returns them."""
    rows = torch.randn(sum(sizes), 3, 2)
    paths = [folder / "classes" / f"{number:06d}.safetensors" for number in range(len(sizes))]
    for number, (path, part) in enumerate(zip(paths, rows.split(sizes), strict=True)):
        tensors.write_tensors(path, **{f"{name}.{number}": part, "other": torch.ones(1)})
    tensors.write_index(folder, name, paths)
    return rows


@pytest.mark.parametrize("sizes", [[4], [3, 1, 5], [0, 2, 0, 0, 3, 0], [1] * 12])
def test_rows_are_those_of_the_parts_in_order(tmp_path, sizes):
    expected = write_parts(tmp_path, sizes)
    rows = tensors.read_rows(tmp_path, "z")
    assert len(rows) == len(expected) and rows.shape == expected.shape and torch.equal(rows.all(), expected)
    index = torch.randint(len(expected), (40,))
    assert torch.equal(rows[index], expected[index]) and rows[index[:0]].shape == (0, 3, 2)


@pytest.mark.parametrize("index", [-1, 4])
def test_rows_out_of_range_are_refused(tmp_path, index):
    write_parts(tmp_path, [1, 3])
    with pytest.raises(IndexError, match=f"{index}"):
        tensors.read_rows(tmp_path, "z")[torch.tensor([0, index])]


def test_index_has_the_form_of_the_hub(tmp_path):
    rows = write_parts(tmp_path, [2, 1])
    index = json.loads((tmp_path / "z.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * rows.numel()
    found = [tensors.read_tensors(tmp_path / file)[name] for name, file in sorted(index["weight_map"].items())]
    assert torch.equal(torch.cat(found), rows)


def test_rows_can_be_moved_with_their_folder(tmp_path):
    expected = write_parts(tmp_path / "a", [2, 1])
    (tmp_path / "a").rename(tmp_path / "b")
    assert torch.equal(tensors.read_rows(tmp_path / "b", "z").all(), expected)


@pytest.mark.parametrize(
    "damaged, content",
    [
        ("z.safetensors.index.json", b'{"weight_map": {'),
        ("z.safetensors.index.json", b"[]"),
        ("z.safetensors.index.json", None),
        ("classes/000001.safetensors", b"12345"),
        ("classes/000001.safetensors", None),
    ],
)
def test_damaged_rows_are_named(tmp_path, damaged, content):
    write_parts(tmp_path, [2, 2])
    (tmp_path / damaged).unlink()
    if content is not None:
        (tmp_path / damaged).write_bytes(content)
    with pytest.raises(InputError, match=damaged):
        tensors.read_rows(tmp_path, "z")


def test_index_of_a_part_without_the_tensor_is_refused(tmp_path):
    write_parts(tmp_path, [2, 2])
    with pytest.raises(InputError, match=r"000001\.safetensors"):
        tensors.write_index(tmp_path, "z", [tmp_path / "classes" / "000001.safetensors"])
