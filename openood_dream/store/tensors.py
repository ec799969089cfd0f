"""Tensors on disk: safetensors, checkpoints of torch, and tensors whose rows lie in several files."""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openood_dream.errors import InputError, show
from openood_dream.store.files import AGAIN, check_file, read_record, replacing, write_json


def write_tensors(path: Path, **tensors: Tensor) -> None:
    """Writes named tensors as safetensors, whole or not at all.

    Args:
        path: the file.
        tensors: any shapes, number formats and devices; views are fine.
    """
    with replacing(path) as work:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, work)


@contextmanager
def reading_tensors(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Makes an InputError, which names the file, of what fails in the block because a safetensors file is damaged.

    Args:
        path: the file that the block reads.
        remedy: what to do about it.
    """
    try:
        check_file(path, remedy)
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {remedy}") from None


def read_tensors(path: Path, **dimensions: int) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, memory-mapped.

    Args:
        path: the file.
        dimensions: the names of tensors that it must hold, and how many dimensions each has.

    Raises:
        InputError: the file is damaged, or lacks such a tensor; the message names it.
    """
    with reading_tensors(path):
        found = load_file(path)
    for name, wanted in dimensions.items():
        if name not in found:
            raise InputError(f"{path}: holds no tensor {name!r} but {', '.join(sorted(found)) or 'none'}; {AGAIN}")
        if found[name].ndim != wanted:
            shape = tuple(found[name].shape)
            raise InputError(f"{path}: {name}: expected {wanted} dimensions, got the shape {shape}; {AGAIN}")
    return found


def load_into(module: nn.Module, path: Path) -> None:
    """Loads a module's weights.

    Args:
        module: the module.
        path: a safetensors file of its own weights.

    Raises:
        InputError: they are another module's.
    """
    state = read_tensors(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        what = " ".join(str(error).splitlines()[1:2]).strip()
        raise InputError(f"{path}: not the weights of this {type(module).__name__} ({what}); {AGAIN}") from None


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes what `read_checkpoint` reads, whole or not at all.

    Args:
        path: the file.
        state: tensors, numbers, text, and lists and dicts of them.
    """
    content = io.BytesIO()  # torch's own files end in errors that do not say why where a disk is full
    torch.save(state, content)
    with replacing(path) as work:
        work.write_bytes(content.getbuffer())


def read_checkpoint(path: str | Path, remedy: str = "delete it and run again") -> dict[str, Any]:
    """A file of torch.save, read with weights_only, so that it can run no code; tensors come to the CPU.

    Args:
        path: the file.
        remedy: what to do where it is damaged.

    Raises:
        InputError: it is no such file, or holds no mapping.
        FileNotFoundError: it is not there.
    """
    _check_packed(path, remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error that follows says it better
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # torch reports a damaged file through many exception types
        foreign = re.search(
            r"GLOBAL ([\w.]+)", str(error)
        )  # an object that is read by running code, which is never done
        what = f"it holds {foreign[1]}, which is not read" if foreign else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({what}); {remedy}") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: expected tensors by name, got a {type(state).__name__}; {remedy}")
    return state


def _check_packed(path: str | Path, remedy: str) -> None:
    """InputError where a file of torch.save, which packs nothing, would become larger in memory than it is."""
    size = check_file(path, remedy)
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(part.file_size for part in file.infolist())
    except Exception:  # of another form, or damaged, which torch finds out
        return
    if unpacked > size:
        raise InputError(f"{path}: {size} bytes that become {unpacked}, which torch.save does not write; {remedy}")


class Rows:
    """A tensor that lies in several files, row after row, memory-mapped: only rows that are asked for are read.

    Args:
        parts: its parts, each (n, ...) with n >= 0.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.shape = torch.Size([int(self._ends[-1]), *parts[0].shape[1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows (B, ...) at the positions `index` (B,), 0 to len - 1."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} of {len(self)}")
        which = torch.searchsorted(self._ends, index, right=True)
        rows = torch.empty(len(index), *self.shape[1:], dtype=self._parts[0].dtype)
        for number in which.unique().tolist():
            part, here = self._parts[number], which == number
            rows[here] = part[index[here] - self._ends[number] + len(part)]
        return rows

    def all(self) -> Tensor:
        """All rows, in memory."""
        return torch.cat(list(self._parts))


def _index_file(folder: Path, name: str) -> Path:
    """Where the index of a tensor in several files lies."""
    return folder / f"{name}.safetensors.index.json"


def write_index(folder: Path, name: str, parts: Sequence[Path]) -> None:
    """Writes the index of a tensor whose rows lie in several safetensors files, in the form of the Hugging Face hub.

    Args:
        folder: where the index is written.
        name: of the tensor; the file number i of `parts` holds its rows as `<name>.<i>`.
        parts: the files, below `folder`; they stay where they are.

    Raises:
        InputError: a file is damaged, or holds no tensor of that name.
    """
    size, places = 0, {}
    for number, part in enumerate(parts):
        size += _map_tensor(part, f"{name}.{number}").nbytes
        places[f"{name}.{number}"] = part.relative_to(folder).as_posix()
    write_json(_index_file(folder, name), {"metadata": {"total_size": size}, "weight_map": places})


def read_rows(folder: Path, name: str) -> Rows:
    """The rows of a tensor in several files, in the order of the files.

    Args:
        folder: where `write_index` wrote its index.
        name: of the tensor.

    Raises:
        InputError: the index or a file is damaged.
    """
    path = _index_file(folder, name)
    try:
        places = read_record(path, {"weight_map": dict})["weight_map"]
    except OSError as error:
        raise InputError(f"{path}: not a readable index of tensors ({error}); {AGAIN}") from None
    parts: list[Tensor] = []
    for number in range(len(places)):
        key = f"{name}.{number}"
        place = places.get(key)
        if not isinstance(place, str) or os.path.isabs(place) or ".." in place.split("/"):
            raise InputError(f"{path}: weight_map: {key}: expected a file below its folder, got {show(place)}; {AGAIN}")
        part = _map_tensor(folder / place, key)
        if not part.ndim or parts and (part.shape[1:], part.dtype) != (parts[0].shape[1:], parts[0].dtype):
            raise InputError(f"{folder / place}: {key}: no rows like those of {name}.0; {AGAIN}")
        parts.append(part)
    if not parts:
        raise InputError(f"{path}: weight_map: expected files, got none; {AGAIN}")
    return Rows(parts)


def _map_tensor(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file, of which nothing but its header is read yet."""
    with reading_tensors(path), safe_open(path, "pt") as file:
        return file.get_tensor(name)
