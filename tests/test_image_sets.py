"""An image set against crashes, full disks and meddling: nothing partial is listed, nothing finished is lost."""

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

from openood_dream import imagine, store

MANY = ("--dream.synthesis.per_class", "100", "--dream.synthesis.shard_size", "4", "--dream.synthesis.batch_size", "2")


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a set that its images are used through."""
    files = [*folder.rglob("*.png"), folder / "imglist.txt"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def cache(tiny, chain, tmp_path) -> Path:
    """A copy of the shared chain's cache without its image sets."""
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("images-*"))
    return tmp_path / "dream"


@pytest.fixture
def image_set(chain, cache) -> Path:
    """A copy of the shared chain's image set."""
    return Path(shutil.copytree(chain.images.path, cache / chain.images.path.name))


# ------------------------------------------------------------------------------------------------------------ crashes

# Forks a child that draws, kills it at a random moment, and looks at what it left; a fork starts in no time.
KILLER = """
import hashlib, os, random, signal, sys, time
from pathlib import Path

import pandas as pd
import torch

from openood_dream import imagine, store
from openood_dream.config import load_config

torch.set_num_threads(1)
config = load_config([sys.argv[1]], sys.argv[3:])
log, cache = Path(sys.argv[2]), Path(config.dream.cache_dir)
draw, rng, kills = imagine.Shards.draw, random.Random(0), 0


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


imagine.Shards.draw = logged
while kills < 20:
    before = finished()
    log.write_text("")
    child = os.fork()
    if child == 0:
        imagine.run(config)
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
def test_a_set_whose_run_was_killed_twenty_times_is_the_set_of_a_run_that_was_not(tiny, cache, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(cache, whole)
    expected = imagine.run(tiny.config(*MANY, "--dream.cache_dir", str(whole)))
    where = ["--dream.cache_dir", str(cache)]
    words = [sys.executable, "-c", KILLER, tiny.file, tmp_path / "log", *MANY, *where]
    killer = subprocess.run(words, capture_output=True, text=True)
    print(killer.stdout)
    assert killer.returncode == 0, killer.stderr
    found = imagine.run(tiny.config(*MANY, *where))
    assert not found.reused and found.path.name == expected.path.name
    assert digests(found.path) == digests(expected.path)
    kept = {path.relative_to(expected.path) for path in expected.path.rglob("*")}
    assert {path.relative_to(found.path) for path in found.path.rglob("*")} == kept
    tables = [
        pd.read_parquet(path / "images.parquet").drop(columns="generator") for path in (found.path, expected.path)
    ]
    assert tables[0].equals(tables[1])


# -------------------------------------------------------------------------------------------------------- full disks


def test_a_disk_that_fills_up_while_drawing_ends_in_one_line_and_loses_nothing(
    command, tiny, chain, cache, monkeypatch
):
    words = ["synthesize", "--config", tiny.file, "--dream.cache_dir", str(cache)]
    count, write = [], store.write_image

    def limited(path: Path, content: bytes) -> None:
        count.append(path)
        if len(count) > 15:  # in the second shard of ten
            path.write_bytes(content[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_image", limited)
        done = command(*words)
    (folder,) = cache.glob("images-*")
    assert done.code == 1 and done.out == ""
    assert done.err == [
        f"openood-dream: error: {folder}: No space left on device; what is finished is kept: mend that and run the same "
        "command again to go on"
    ]
    assert store.complete(folder) is None and not (folder / "imglist.txt").exists()
    first = (folder / "shards" / "000000.parquet").stat().st_mtime_ns
    assert command(*words).code == 0 and digests(folder) == digests(chain.images.path)
    assert (folder / "shards" / "000000.parquet").stat().st_mtime_ns == first


def test_a_real_disk_that_is_full_loses_nothing(tiny, chain, cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        folder = disk / chain.images.path.name
        (cache / folder.name).symlink_to(folder)
        folder.mkdir()
        config = tiny.config("--dream.cache_dir", str(cache))
        with pytest.raises(OSError, match="No space left on device; what is finished is kept"):
            imagine.run(config)
        assert store.complete(folder) is None and not (folder / "imglist.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        imagine.run(config)
        assert digests(folder) == digests(chain.images.path)
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------------------------------------------------ verify


def test_an_image_set_as_it_was_drawn_passes(command, image_set):
    done = command("verify", image_set)
    assert (done.code, done.err) == (0, []) and done.out == f"{image_set}: 24 images, all as recorded\n"


def test_altered_missing_and_additional_images_are_named_and_the_repair_redraws_their_shards_alone(
    command, tiny, chain, image_set, monkeypatch
):
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
    assert problems == [*expected, "zero/mine.png: not in images.parquet"] and "run the same synthesize again" in hint
    subprocess.run(["sh", "-c", repair], check=True)
    numbers, draw = [], imagine.Shards.draw
    monkeypatch.setattr(
        imagine.Shards, "draw", lambda self, number, *rest: numbers.append(number) or draw(self, number, *rest)
    )
    imagine.run(tiny.config("--dream.cache_dir", str(image_set.parent)))
    assert numbers == [0, 2] and digests(image_set) == digests(chain.images.path)
    assert command("verify", image_set).code == 0


def test_a_list_that_was_changed_is_named(command, image_set):
    (image_set / "imglist.txt").write_text("zero/0000000.png 0\n")
    done = command("verify", image_set)
    assert done.code == 1 and "imglist.txt: not the files and labels of images.parquet" in done.out


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_table_that_cannot_be_read_is_named(command, image_set, damage):
    path = image_set / "images.parquet"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:100])
    done = command("verify", image_set)
    assert done.code == 2 and len(done.err) == 1
    assert f"{path}: not a readable table" in done.err[0] and "run the same synthesize again" in done.err[0]


def test_a_folder_that_is_no_image_set_is_named(command, chain, tmp_path):
    for folder in (tmp_path, tmp_path / "none", chain.space.path):
        done = command("verify", folder)
        assert done.code == 2 and done.err[0].startswith(f"openood-dream: error: {folder}: no finished image set;")


def test_a_damaged_table_of_a_shard_is_named(command, tiny, image_set):
    table = store.shard_table(image_set, 1)
    table.write_bytes(table.read_bytes()[:50])
    (image_set / "manifest.json").unlink()
    done = command("synthesize", "--config", tiny.file, "--dream.cache_dir", str(image_set.parent))
    assert done.code == 2 and len(done.err) == 1
    assert f"{table}: not a readable table" in done.err[0] and "delete it and run again" in done.err[0]


def test_the_repair_line_is_safe_for_any_folder_name(command, image_set):
    folder = image_set.rename(image_set.with_name("my images; 'old'"))
    table = pd.read_parquet(folder / "images.parquet")
    (folder / table["file"][0]).unlink()
    repair = command("verify", folder).out.splitlines()[-1]
    subprocess.run(["sh", "-c", repair], check=True)
    assert not (folder / "manifest.json").exists() and not store.shard_table(folder, 0).exists()
    assert store.shard_table(folder, 1).exists()
