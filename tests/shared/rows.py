"""Rows of bad input: a command, the files it reads, and the line that it ends with."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image


class Row(NamedTuple):
    """A command that is rejected with a line that begins with `line`: the file and the key.

    `{tiny}` in words stands for the tiny config, `{tmp}` for an empty folder, where `files` are written first: text,
    bytes, or what makes new bytes of the old ones, for all files of a pattern.
    """

    name: str
    words: str
    line: str
    files: dict[str, str | bytes | Callable[[bytes], bytes]] = {}


def places(words: str, tiny, tmp: Path, write: Callable[[str], str] = str) -> str:
    return (
        words.replace("{tiny}", write(tiny.file))
        .replace("{tmp}", write(str(tmp)))
        .replace("{root}", write(str(tiny.root)))
    )


def prepare(row: Row, tiny, tmp: Path) -> None:
    if any(name.startswith("dream/") for name in row.files):
        shutil.copytree(tiny.root / "dream", tmp / "dream")
    for name, content in row.files.items():
        if callable(content):
            found = list(tmp.glob(name))
            assert found, name
            for path in found:
                path.write_bytes(content(path.read_bytes()))
        else:
            (tmp / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tree(*folders: str | Path) -> dict[str, int]:
    """All files with their times, and all folders."""
    found = {}
    for folder in filter(os.path.exists, folders):
        for entry in os.scandir(folder):
            found[entry.path] = 0 if entry.is_dir() else entry.stat().st_mtime_ns
            found |= tree(entry.path) if entry.is_dir() else {}
    return found


def png(mode: str = "RGB", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def weights(value: object, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


TRAIN = "train --config {tiny} benchmarks/methods/base.yml --root {tmp}/new"
LAYER = f"{TRAIN} --config {{tmp}}/layer.yml"
SPACE = "space --config {tiny} --root {tmp}/new"
SCORE = "evaluate --config {tiny} pipelines/test/test_ood.yml postprocessors/knn.yml --root {tmp}/new"


def layer(name: str, text: str | bytes, line: str, **files: str) -> Row:
    return Row(
        name, LAYER, r"{tmp}/layer\.yml" + line, {"layer.yml": text, **{f"{key}.yml": t for key, t in files.items()}}
    )


def key(words: str, line: str, command: str = TRAIN) -> Row:
    """A bad value of a key on the command line."""
    return Row(words, f"{command} --{words}", f"command line: {line}")


def rejected(row: Row, command, tiny, digits: Path, tmp_path: Path) -> None:
    """Asserts that a row's command ends with exit code 2 and its one line, and that no file was written or changed."""
    prepare(row, tiny, tmp_path)
    watched = (tmp_path, tiny.root, digits)
    before = tree(*watched)
    done = command(*shlex.split(places(row.words, tiny, tmp_path)))
    assert done.code == 2 and len(done.err) == 1 and done.out == "", done
    line = "openood-dream: error: " + places(row.line, tiny, tmp_path, re.escape)
    assert re.match(line, done.err[0]), f"{done.err[0]}\ndoes not begin with\n{line}"
    assert tree(*watched) == before
