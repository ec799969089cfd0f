"""The state of a training on disk: one format, from which an interrupted one goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from openood_dream.errors import InputError, out_of_memory, reason, show
from openood_dream.parallel.processes import Processes
from openood_dream.store import tensors
from openood_dream.store.files import Kinds

REMEDY = "delete it to start anew"


class Batches:
    """Endless batches of a shuffled loader, which can go on where an earlier run of them stopped.

    Args:
        loader: the loader; it is begun again whenever it ends.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.rows: Iterator[dict[str, Any]] = iter(())
        self.start, self.taken = torch.get_rng_state(), 0

    def __next__(self) -> dict[str, Any]:
        batch = next(self.rows, None)
        if batch is None:
            self.start, self.taken = torch.get_rng_state(), 0
            self.rows = iter(self.loader)
            batch = next(self.rows)
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The random numbers that the present pass began with, and how many batches were taken from it."""
        return {"start": self.start, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the place of a `state_dict`, which leaves torch's random numbers as they were there."""
        torch.set_rng_state(state["start"])
        if not 0 <= state["taken"] <= len(self.loader):
            raise ValueError(f"{state['taken']} batches taken of {len(self.loader)}")
        for _ in range(state["taken"]):
            next(self)


def write_state(path: Path, processes: Processes, parts: Mapping[str, Any], batches: Batches | None = None) -> None:
    """Writes a training's state by rename, with the random numbers and the place in the data of every process.

    Every process must call it; the main one writes.

    Args:
        path: the file, which is replaced.
        processes: those that train.
        parts: state dicts and plain values (tensors, numbers, text, lists of these) by name; those of the main process
            are kept.
        batches: where this process takes its images from, or None where each epoch begins anew.
    """
    own: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(processes.device)
    if batches is not None:
        own["batches"] = batches.state_dict()
    everyone = processes.gather(own)
    if processes.is_main:
        tensors.write_checkpoint(path, {**parts, "random": everyone})


def read_state(path: Path, processes: Processes, kinds: Kinds | None = None) -> dict[str, Any] | None:
    """Reads what `write_state` wrote, for a training by as many processes.

    Args:
        path: the file.
        processes: those that train.
        kinds: for each part that is read, what it may be.

    Returns:
        The parts, tensors on the CPU, and "random" for `set_random_state`; None where there is no file.

    Raises:
        InputError: the file is damaged, or was written by another number of processes.
    """
    try:
        state = tensors.read_checkpoint(path, REMEDY)
    except FileNotFoundError:
        return None
    for key, kind in {"random": list, **(kinds or {})}.items():
        if not isinstance(state.get(key), kind):
            raise InputError(f"{path}: {key}: not what this program writes, {show(state.get(key))}; {REMEDY}")
    before = len(state["random"])
    if before != processes.count:
        raise InputError(f"{path}: begun by {before} processes, this are {processes.count}; start as many, or {REMEDY}")
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Makes an InputError, which names the file, of what fails in the block because a state does not fit the training.

    Args:
        path: the file that the state was read from.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(f"{path}: not the state of this training ({reason(error)}); {REMEDY}") from None


def set_random_state(state: Mapping[str, Any], processes: Processes, batches: Batches | None = None) -> None:
    """Sets this process's random numbers, and its place in the data, to those of a state.

    Args:
        state: what `read_state` returned.
        processes: those that train.
        batches: where this process takes its images from, if it had any when the state was written.
    """
    own = state["random"][processes.index]
    if batches is not None:
        batches.load_state_dict(own["batches"])
    torch.set_rng_state(own["cpu"])
    if processes.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], processes.device)
