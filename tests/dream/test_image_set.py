"""Image sets in shards, against crashes, full disks and meddling: nothing partial is listed, nothing finished is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from openood_dream.datasets.imglist import read_imglist
from openood_dream.dream import images
from openood_dream.dream.image_set import (
    join_shards,
    missing_shards,
    read_images,
    shard_table,
    shards,
    write_image,
)
from openood_dream.dream.images import Shards
from openood_dream.store import files as store
from openood_dream.store.artifacts import complete
from openood_dream.store.tables import write_table

MANY = ("--dream.synthesis.per_class", "100", "--dream.synthesis.shard_size", "4", "--dream.synthesis.batch_size", "2")


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a set that its images are used through."""
    files = [*folder.rglob("*.png"), folder / "imglist.txt"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def cache(tiny, dream, tmp_path) -> Path:
    """A copy of the shared dream's cache without its image sets."""
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("images-*"))
    return tmp_path / "dream"


@pytest.fixture
def image_set(dream, cache) -> Path:
    """A copy of the shared dream's image set."""
    return Path(shutil.copytree(dream.images.path, cache / dream.images.path.name))


# ------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("total, size", [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_shards_hold_every_image_once_in_order(total, size):
    parts = shards(total, size)
    assert [i for part in parts for i in part] == list(range(total)) and max(map(len, parts)) <= size


def test_shards_join_in_order_whoever_wrote_them_first(tmp_path):
    wanted = shards(5, 2)
    more = {"sha256": "", "class": 0, "embedding": 0, "distance": 1.0}
    for number in (2, 0):
        rows = [{"file": f"a b/{i}.png", "label": -1, "seed": i, **more} for i in wanted[number]]
        write_table(shard_table(tmp_path, number), pd.DataFrame(rows))
    assert missing_shards(tmp_path, wanted) == [1]
    rows = [{"file": f"c/{i}.png", "label": 3, "seed": i, **more} for i in wanted[1]]
    write_table(shard_table(tmp_path, 1), pd.DataFrame(rows))
    assert missing_shards(tmp_path, wanted) == []
    table = join_shards(tmp_path, 3)
    assert table["seed"].tolist() == [0, 1, 2, 3, 4]
    expected = [("a b/0.png", -1), ("a b/1.png", -1), ("c/2.png", 3), ("c/3.png", 3), ("a b/4.png", -1)]
    assert read_imglist(tmp_path / "imglist.txt") == expected
    assert read_images(tmp_path).equals(table)


# ------------------------------------------------------------------------------------------------------------ crashes

# Forks a child that draws, kills it at a random moment, and looks at what it left; a fork starts in no time.
KILLER = """
import hashlib, os, random, signal, sys, time
from pathlib import Path

import pandas as pd
import torch

from openood_dream.dream.images import Shards
from openood_dream.experiment import load_config

torch.set_num_threads(1)
config = load_config([sys.argv[1]], sys.argv[3:])
log, cache = Path(sys.argv[2]), Path(config.dream.cache_dir)
draw, rng, kills = Shards.draw, random.Random(0), 0


def logged(self, number, *rest):
    with open(log, "a") as file:
        file.write(f"{number}\\n")
    draw(self, number, *rest)


def finished():
    tables = {}
    for path in cache.glob("images-*/shards/[0-9]*.parquet"):
        tables[int(path.stem)] = path
        for row in pd.read_parquet(path).itertuples():
            image = path.parent.parent / row.file
            assert hashlib.sha256(image.read_bytes()).hexdigest() == row.sha256, image
    return tables


Shards.draw = logged
while kills < 20:
    before = finished()
    log.write_text("")
    child = os.fork()
    if child == 0:
        config.imagination.images
        os._exit(0)
    wanted = rng.randrange(5)  # shards that it may begin: none while it loads
    while len(log.read_text().split()) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    drawn = [int(line) for line in log.read_text().split()]
    assert not set(drawn) & set(before), (drawn, before)
    assert not list(cache.glob("images-*/manifest.json"))
    print(kills, "killed after", len(drawn), "shards of this run;", len(finished()), "finished", flush=True)
"""


@pytest.mark.slow
def test_twenty_kills_change_nothing(tiny, cache, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(cache, whole)
    expected = tiny.config(*MANY, "--dream.cache_dir", str(whole)).imagination.images
    where = ["--dream.cache_dir", str(cache)]
    words = [sys.executable, "-c", KILLER, tiny.file, tmp_path / "log", *MANY, *where]
    killer = subprocess.run(words, capture_output=True, text=True)
    print(killer.stdout)
    assert killer.returncode == 0, killer.stderr
    found = tiny.config(*MANY, *where).imagination.images
    assert not found.reused and found.path.name == expected.path.name
    assert digests(found.path) == digests(expected.path)
    kept = {path.relative_to(expected.path) for path in expected.path.rglob("*")}
    assert {path.relative_to(found.path) for path in found.path.rglob("*")} == kept
    tables = [
        pd.read_parquet(path / "images.parquet").drop(columns="generator") for path in (found.path, expected.path)
    ]
    assert tables[0].equals(tables[1])


def test_every_file_and_folder_is_brought_to_the_disk_once(tiny, cache, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tiny.config("--dream.cache_dir", str(cache)).imagination.images.path
    pictures = sorted(path for path in synced if path.suffix == ".png")
    assert pictures == sorted(folder.glob("*/*.png"))
    folders = {path for path in folder.rglob("*") if path.is_dir()} | {folder, folder.parent}
    tables = [path for path in synced if path.suffix in (".parquet", ".txt", ".json") and folder in path.parents]
    assert folders <= set(synced)
    assert len(tables) == len([path for path in folder.rglob("*") if path.is_file()]) - len(pictures)


# -------------------------------------------------------------------------------------------------------- full disks


def test_disk_fills_up(command, tiny, dream, cache, monkeypatch):
    words = ["imagine", "--config", tiny.file, "--dream.cache_dir", str(cache)]
    count, write = [], write_image

    def limited(path: Path, content: bytes) -> None:
        count.append(path)
        if len(count) > 15:  # in the second shard of ten
            path.write_bytes(content[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(images, "write_image", limited)
        done = command(*words)
    (folder,) = cache.glob("images-*")
    assert done.code == 1 and done.out == ""
    assert done.err == [
        f"openood-dream: error: {folder}: No space left on device; what is finished is kept: mend that and run the same "
        "command again to go on"
    ]
    assert complete(folder) is None and not (folder / "imglist.txt").exists()
    first = (folder / "shards" / "000000.parquet").stat().st_mtime_ns
    assert command(*words).code == 0 and digests(folder) == digests(dream.images.path)
    assert (folder / "shards" / "000000.parquet").stat().st_mtime_ns == first


def test_real_disk_fills_up(tiny, dream, cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        folder = disk / dream.images.path.name
        (cache / folder.name).symlink_to(folder)
        folder.mkdir()
        config = tiny.config("--dream.cache_dir", str(cache))
        with pytest.raises(OSError, match="No space left on device; what is finished is kept"):
            config.imagination.images  # noqa: B018
        assert complete(folder) is None and not (folder / "imglist.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        config.imagination.images  # noqa: B018
        assert digests(folder) == digests(dream.images.path)
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------------------------------------------------ verify


def test_untouched_set_passes(command, image_set):
    done = command("verify", image_set)
    assert (done.code, done.err) == (0, []) and done.out == f"{image_set}: 24 images, all as recorded\n"


def test_meddling_is_named_and_repaired(command, tiny, dream, image_set, monkeypatch):
    table = pd.read_parquet(image_set / "images.parquet")
    altered, missing = table["file"][3], table["file"][21]
    content = bytearray((image_set / altered).read_bytes())
    content[-1] ^= 1
    (image_set / altered).write_bytes(content)
    (image_set / missing).unlink()
    (image_set / "zero" / "mine.png").write_bytes(b"")
    done = command("verify", image_set)
    assert done.code == 1
    assert done.err == [f"openood-dream: error: {image_set}: 3 problems with 24 images"]
    *problems, hint, repair = done.out.splitlines()
    expected = [f"{altered}: altered (shard 0)", f"{missing}: no such file or directory (shard 2)"]
    assert problems == [*expected, "zero/mine.png: not in images.parquet"]
    assert "run the same imagine again" in hint
    subprocess.run(["sh", "-c", repair], check=True)
    numbers, draw = [], Shards.draw
    monkeypatch.setattr(Shards, "draw", lambda self, number, *rest: numbers.append(number) or draw(self, number, *rest))
    tiny.config("--dream.cache_dir", str(image_set.parent)).imagination.images  # noqa: B018
    assert numbers == [0, 2] and digests(image_set) == digests(dream.images.path)
    assert command("verify", image_set).code == 0


def test_changed_list(command, image_set):
    (image_set / "imglist.txt").write_text("zero/0000000.png 0\n")
    done = command("verify", image_set)
    assert done.code == 1 and "imglist.txt: not the files and labels of images.parquet" in done.out


def move_away(folder: Path, name: str) -> None:
    """Moves a part of a set elsewhere and leaves a link."""
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


# What somebody may do to a set, and the file that is named.
MEDDLING = {
    "beside the folders": (lambda folder: (folder / "more.txt").touch(), "more.txt"),
    "among the shards": (lambda folder: (folder / "shards" / "000099.parquet").touch(), "shards/000099.parquet"),
    "hidden": (
        lambda folder: (folder / ".x" / "y").mkdir(parents=True) or (folder / ".x" / "y" / "z").touch(),
        ".x/y/z",
    ),
    "a linked folder": (lambda folder: move_away(folder, "zero"), "zero"),
    "a linked image": (lambda folder: move_away(folder, "zero/0000000.png"), "zero/0000000.png"),
    "another folder": (lambda folder: (folder / "etc").symlink_to("/etc"), "etc"),
    "a shard's table": (
        lambda folder: shutil.copy(shard_table(folder, 0), shard_table(folder, 1)),
        "shards/000001.parquet",
    ),
}


@pytest.mark.parametrize("kind", MEDDLING)
def test_meddling_of_any_kind(command, tiny, dream, image_set, kind):
    meddle, file = MEDDLING[kind]
    meddle(image_set)
    done = command("verify", image_set)
    assert done.code == 1 and [line for line in done.out.splitlines() if line.startswith(f"{file}: ")], done
    subprocess.run(["sh", "-c", done.out.splitlines()[-1]], check=True)
    tiny.config("--dream.cache_dir", str(image_set.parent)).imagination.images  # noqa: B018
    assert digests(image_set) == digests(dream.images.path) and command("verify", image_set).code == 0


def test_changed_settings(command, image_set):
    manifest = image_set / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"per_class": 4', '"per_class": 5'))
    done = command("verify", image_set)
    assert done.code == 2 and f"{manifest}: inputs: not those of its hash" in done.err[0]


@pytest.mark.parametrize(
    "file", ["../../secret.png", "/etc/passwd", "zero/..", "zero/../one/0000001.png", "none/../../x", "."]
)
def test_nothing_outside_is_read(command, image_set, monkeypatch, file):
    table = read_images(image_set)
    table.loc[0, "file"] = file
    write_table(image_set / "images.parquet", table)
    read = []
    monkeypatch.setattr(store, "sha256", lambda path: read.append(str(path)) or "")
    assert command("verify", image_set).code == 1
    assert len(read) == len(table) - 1 and not [path for path in read if path.endswith(file)]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_unreadable_table(command, image_set, damage):
    path = image_set / "images.parquet"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:100])
    done = command("verify", image_set)
    assert done.code == 2 and len(done.err) == 1
    assert f"{path}: not a readable table" in done.err[0] and "delete" in done.err[0]


def test_no_image_set(command, dream, tmp_path):
    for folder in (tmp_path, tmp_path / "none", dream.space.path):
        done = command("verify", folder)
        assert done.code == 2 and done.err[0].startswith(f"openood-dream: error: {folder}: no finished image set;")


def test_damaged_table_of_a_shard(command, tiny, image_set):
    table = shard_table(image_set, 1)
    table.write_bytes(table.read_bytes()[:50])
    (image_set / "manifest.json").unlink()
    done = command("imagine", "--config", tiny.file, "--dream.cache_dir", str(image_set.parent))
    assert done.code == 2 and len(done.err) == 1
    assert f"{table}: not a readable table" in done.err[0] and "delete it and run again" in done.err[0]


def test_repair_line_is_safe_for_any_folder_name(command, image_set):
    folder = image_set.rename(image_set.with_name("my images; 'old'"))
    table = pd.read_parquet(folder / "images.parquet")
    (folder / table["file"][0]).unlink()
    repair = command("verify", folder).out.splitlines()[-1]
    subprocess.run(["sh", "-c", repair], check=True)
    assert not (folder / "manifest.json").exists() and not shard_table(folder, 0).exists()
    assert shard_table(folder, 1).exists()
