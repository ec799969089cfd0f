"""Readers of our files: whatever a file holds, what comes back has the promised form, or one line names the file."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openood_dream.errors import InputError
from openood_dream.store import arrays, artifacts, files
from openood_dream.store.arrays import read_arrays
from openood_dream.store.tables import INTEGERS, TEXTS, read_table, write_table
from openood_dream.store.tensors import (
    load_into,
    read_checkpoint,
    read_rows,
    read_tensors,
    write_checkpoint,
    write_tensors,
)

AGAIN = "delete it"
SCORES = {"pred": "iu", "conf": "iuf", "label": "iu"}


def npz(path: Path, **arrays) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


# What is read of each format, and what writes a good file of it.
READERS = {
    "json": lambda path: files.read_record(path, {"hash": str, "inputs": dict}),
    "npz": lambda path: read_arrays(path, AGAIN, **SCORES),
    "safetensors": lambda path: read_tensors(path, anchors=2),
    "ckpt": read_checkpoint,
    "parquet": lambda path: read_table(path, {"file": TEXTS, "label": INTEGERS}),
}
WRITERS = {
    "json": lambda path: files.write_json(path, {"hash": "0", "inputs": {"k": 1}}),
    "npz": lambda path: npz(path, pred=np.arange(9), conf=np.ones(9, np.float32), label=np.arange(9)),
    "safetensors": lambda path: write_tensors(path, anchors=torch.ones(3, 4)),
    "ckpt": lambda path: write_checkpoint(path, {"net": {"w": torch.ones(3)}, "epoch": 2}),
    "parquet": lambda path: write_table(path, pd.DataFrame({"file": ["a", "b"], "label": [0, 1]})),
}


def refused(kind: str, path: Path) -> str:
    """The line that a reader ends with, which names the file."""
    with pytest.raises(InputError) as caught:
        READERS[kind](path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert "delete" in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- each kind of damage


@pytest.mark.parametrize("kind", READERS)
def test_good_file_is_read(kind, tmp_path):
    WRITERS[kind](tmp_path / "a")
    assert len(READERS[kind](tmp_path / "a"))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("what", ["pipe", "folder", "empty"])
def test_no_regular_file(kind, what, tmp_path):
    path = tmp_path / "a"
    {"pipe": os.mkfifo, "folder": os.mkdir, "empty": Path.touch}[what](path)
    refused(kind, path)


@pytest.mark.parametrize(
    "text", ["[1]", "null", "{}", '{"hash": "0", "inputs": null}', "[" * 10**6, '{"hash": 1' + "0" * 5000]
)
def test_record_of_another_form(text, tmp_path):
    (tmp_path / "a").write_text(text)
    refused("json", tmp_path / "a")


def test_record_of_any_size(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    assert "at most 32 MB" in refused("json", tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [
        {"conf": np.ones(8)},
        {"pred": np.zeros((9, 2), int)},
        {"label": np.array(1)},
        {"conf": np.full(9, np.nan)},
        {"conf": np.array(["1"] * 9)},
        {"label": np.ones(9)},
        {"pred": np.array([[]] * 9, object)},
        {"pred": np.zeros(0, int), "conf": np.zeros(0), "label": np.zeros(0, int)},
    ],
)
def test_scores_of_another_form(changes, tmp_path):
    npz(tmp_path / "a", **{"pred": np.arange(9), "conf": np.ones(9), "label": np.arange(9), **changes})
    refused("npz", tmp_path / "a")


def test_scores_that_unpack_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MOST_BYTES", 1 << 20)
    with open(tmp_path / "a", "wb") as file:
        np.savez_compressed(file, pred=np.arange(9), conf=np.zeros(1 << 18), label=np.arange(9))
    assert "more than" in refused("npz", tmp_path / "a")


def test_scores_that_claim_more_than_they_hold(tmp_path):
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        file.writestr("pred.npy", content.getvalue())
        file.writestr("conf.npy", content.getvalue())
        file.writestr("label.npy", content.getvalue())
    refused("npz", tmp_path / "a")


def test_tensors_of_another_form(tmp_path):
    write_tensors(tmp_path / "a", other=torch.ones(2))
    assert "no tensor 'anchors' but other" in refused("safetensors", tmp_path / "a")
    write_tensors(tmp_path / "a", anchors=torch.ones(2))
    assert "anchors: expected 2 dimensions" in refused("safetensors", tmp_path / "a")
    with pytest.raises(InputError, match=f"{tmp_path / 'a'}: not the weights of this Linear"):
        load_into(torch.nn.Linear(2, 2), tmp_path / "a")


def test_checkpoint_that_unpacks_to_more(tmp_path):
    WRITERS["ckpt"](tmp_path / "whole")
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in whole.namelist():
            file.writestr(name, bytes(10**6) if "/data/" in name else whole.read(name))
    assert "that become" in refused("ckpt", tmp_path / "a")


@pytest.mark.parametrize(
    "frame",
    [
        {"file": ["a"]},
        {"file": [1, 2], "label": [0, 1]},
        {"file": ["a", None], "label": [0, 1]},
        {"file": [b"a", b"b"], "label": [0, 1]},
        {"file": ["a", "b"], "label": ["0", "1"]},
        {"file": ["a", "b"], "label": [0.5, None]},
    ],
)
def test_table_of_another_schema(frame, tmp_path):
    write_table(tmp_path / "a", pd.DataFrame(frame))
    refused("parquet", tmp_path / "a")


@pytest.mark.parametrize("place", ["../out.safetensors", "/etc/passwd", 1, None, "a/../../x"])
def test_index_of_rows_stays_in_its_folder(place, tmp_path):
    path = tmp_path / "in" / "z.safetensors.index.json"
    write_tensors(tmp_path / "out.safetensors", **{"z.0": torch.ones(2, 2)})
    files.write_json(path, {"weight_map": {"z.0": place}})
    with pytest.raises(InputError, match="expected a file below its folder"):
        read_rows(path.parent, "z")


def test_rows_that_do_not_fit_together(tmp_path):
    write_tensors(tmp_path / "a", **{"z.0": torch.ones(2, 2), "z.1": torch.ones(2, 3)})
    files.write_json(tmp_path / "z.safetensors.index.json", {"weight_map": {"z.0": "a", "z.1": "a"}})
    with pytest.raises(InputError, match=r"a: z\.1: no rows like"):
        read_rows(tmp_path, "z")


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"k": 2}},
        {"inputs": {"k": float("nan")}},
        {"inputs": None},
        {"hash": "0" * 16},
        {"warnings": [1]},
        {"seconds": "1"},
        {"inputs": {"k": 2}, "hash": files.fingerprint({"k": 2})},
    ],
)
def test_changed_manifest_is_refused(change, tmp_path):
    folder = artifacts.build(tmp_path, "space", {"k": 1}, lambda folder: None).path
    manifest = json.loads((folder / artifacts.MANIFEST).read_text())
    (folder / artifacts.MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=r"manifest\.json: .*; delete the folder and run again"):
        artifacts.build(tmp_path, "space", {"k": 1}, lambda folder: None)


# ------------------------------------------------------------------------------------------------------------- the fuzz


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=8), st.integers(0, 8)), min_size=1, max_size=4
)


def fuzz(kind: str, folder: Path, edits: list[tuple[float, bytes, int]], keep: float) -> None:
    """Overwrites, inserts, cuts and halves a good file; the reader returns something or names the file."""
    path = folder / f"a.{kind}"
    WRITERS[kind](path)
    content = bytearray(path.read_bytes())
    for place, new, gone in edits:
        at = int(place * len(content))
        content[at : at + gone] = new
    path.write_bytes(content[: int(keep * len(content))] if keep < 0.5 else content)
    try:
        READERS[kind](path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(edits=EDITS, keep=st.floats(0, 1))
def test_fuzz(kind, tmp_path, edits, keep):
    fuzz(kind, tmp_path, edits, keep)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS, keep=st.floats(0, 1))
def test_long_fuzz(kind, tmp_path, edits, keep):
    fuzz(kind, tmp_path, edits, keep)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["hash", "inputs", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(manifest=st.dictionaries(st.sampled_from(sorted(artifacts.KEYS)), VALUES))
def test_any_manifest(tmp_path, manifest):
    (tmp_path / artifacts.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json: "):
        artifacts.completed(tmp_path)
