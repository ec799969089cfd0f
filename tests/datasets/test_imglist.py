"""Image lists: read whatever their names, refused by line, and identified by what they hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from openood_dream.datasets import images
from openood_dream.datasets.imglist import list_identity, read_imglist, write_imglist
from openood_dream.errors import InputError
from openood_dream.store import files


def test_names_and_line_ends_of_all_kinds(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a/b.png 3\r\n\r\nsea horse/öl 1.png -1\r\ndata/..c.png 12 \n".encode())
    assert read_imglist(path) == [("a/b.png", 3), ("sea horse/öl 1.png", -1), ("data/..c.png", 12)]


def test_written_is_read_back(tmp_path):
    rows = [("sea horse/1.png", 0), ("b.png", -1)]
    write_imglist(tmp_path / "list.txt", rows)
    assert read_imglist(tmp_path / "list.txt") == rows


@pytest.mark.parametrize(
    "text, place",
    [
        ("a.png 0\nb.png\n", r"list\.txt:2: .*'b\.png'"),
        ("a.png 0\n\nb.png cat\n", r"list\.txt:3: .*'b\.png cat'"),
        ("a.png 0.5\n", r"list\.txt:1: .*'a\.png 0\.5'"),
        ("7\n", r"list\.txt:1: .*'7'"),
        ("a.png 0\n../b.png 1\n", r"list\.txt:2: .*'\.\./b\.png'"),
        ("a/../../b.png 1\n", r"list\.txt:1: "),
        ("a.png 0\n/etc/passwd 1\n", r"list\.txt:2: .*'/etc/passwd'"),
        ("a\0.png 0\n", r"list\.txt:1: "),
        ("\n\n", r"list\.txt: .*dataset\.train\.imglist_pth"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, text, place):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=place):
        read_imglist(tmp_path / "list.txt", "dataset.train.imglist_pth")


def test_lists_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: .*dataset\.val\.imglist_pth"):
        read_imglist(tmp_path / "none.txt", "dataset.val.imglist_pth")
    with pytest.raises(InputError, match=f"{tmp_path}: "):
        read_imglist(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00 1")
    with pytest.raises(InputError, match=r"binary\.txt:1: .*0xff"):
        read_imglist(tmp_path / "binary.txt")


# ---------------------------------------------------------------------------------------------------------- identity


def test_identity_is_of_names_labels_and_contents_not_of_the_place(tmp_path):
    def identity(folder: str, name: str = "a.png", label: int = 0, content: bytes = b"12345") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(content)
        write_imglist(tmp_path / folder / "list.txt", [(name, label)])
        return list_identity(tmp_path / folder / "list.txt", tmp_path / folder, "key")

    first = identity("one")
    assert first == identity("two")
    others = {identity("three", name="b.png"), identity("four", label=1), identity("five", content=b"123456")}
    assert len({first, *others}) == 4


def test_identity_names_a_missing_image(tmp_path):
    write_imglist(tmp_path / "list.txt", [("a.png", 0)])
    with pytest.raises(InputError, match=r"list\.txt: image '.*/a\.png' is not there"):
        list_identity(tmp_path / "list.txt", tmp_path, "key")


def test_identity_changes_where_images_change_places(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path, content in ((first, b"12345"), (second, b"54321")):
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    write_imglist(tmp_path / "list.txt", [("a.png", 0), ("b.png", 1)])
    before = list_identity(tmp_path / "list.txt", tmp_path, "key")
    first.rename(tmp_path / "c")  # files of one size and one time
    second.rename(first)
    (tmp_path / "c").rename(second)
    assert list_identity(tmp_path / "list.txt", tmp_path, "key") != before


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """A folder with a list of as many files as CIFAR-10 has training images; none is an image."""
    folder = tmp_path_factory.mktemp("cifar")
    rows = [(f"train/{i % 10}/{i:05d}.png", i % 10) for i in range(50_000)]
    for label in range(10):
        (folder / "train" / str(label)).mkdir(parents=True)
    for name, _ in rows:
        (folder / name).write_bytes(name.encode())
    write_imglist(folder / "train.txt", rows)
    return folder


def test_50_000_files_are_looked_at_once_and_none_is_decoded(cifar, monkeypatch):
    now, stat, stats = time.time_ns, os.stat, []
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 10**10)  # so that they count as old
    monkeypatch.setattr(images, "read_image", lambda *args: pytest.fail("decoded an image"))
    expected = list_identity(cifar / "train.txt", cifar, "key")
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("read a file again"))
    monkeypatch.setattr(os, "stat", lambda path, **options: stats.append(os.fspath(path)) or stat(path, **options))
    start = time.perf_counter()
    with files.looked_once():
        for _ in range(3):
            opened = images.ImageList(cifar / "train.txt", cifar, images.Transform(32, 32))
            assert opened.identity == opened.augmented().identity == expected
            assert list_identity(str(cifar / "train.txt"), str(cifar), "other") == expected
    assert time.perf_counter() - start < 3
    seen = [path for path in stats if path.endswith(".png")]
    assert len(seen) == len(set(seen)) == 50_000


def test_pipe_among_the_images_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "list.txt").write_text("x.png 0\n")
    with pytest.raises(InputError, match=r"list\.txt: image .*x\.png' cannot be read \(it is no regular file\)"):
        list_identity(tmp_path / "list.txt", tmp_path, "imglist_pth")
