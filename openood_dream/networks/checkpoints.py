"""Weights of a network from a file: of ours, timm's, OpenOOD's or Lightning's key names, or safetensors."""

from __future__ import annotations

import argparse
import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openood_dream.errors import InputError
from openood_dream.store import files, tensors

State = dict[str, Tensor]

# where training programs keep the weights in what they save, those of the network before averages of them
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
PREFIXES = ("module.", "model.", "net.", "network.", "backbone.")  # of all names: what the network was a part of
INSERTED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # by torch, anywhere
# what such files hold beside tensors, and what runs no code: timm's arguments, and NumPy's numbers such as an accuracy
_NUMBER: Any = np.float64(0).__reduce__()[0]


def _number_of(module: str) -> Callable[..., Any]:
    """What makes NumPy's numbers, by the name of a module of NumPy's, which its version 2 changed."""

    def scalar(*args: Any) -> Any:
        return _NUMBER(*args)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


HARMLESS: list[Any] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    *map(_number_of, ("numpy.core.multiarray", "numpy._core.multiarray")),
    *{type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")},
]
REMEDY = (
    "expected tensors by name, as torch.save(net.state_dict(), file) or safetensors: restore it, or delete its folder "
    "and train again"
)


def load_weights(net: nn.Module, checkpoint: str | Path, key: str = "network.checkpoint") -> None:
    """Loads the weights of a checkpoint into a network; it must have all of the network's, and no others.

    Args:
        net: the network; its weights are overwritten.
        checkpoint: a file of torch.save, which is read with weights_only, or a safetensors file: tensors by name, alone
            or where training programs keep them (WRAPPERS), with or without the prefixes that wrappers give names.
        key: the config key that names the file, for messages.

    Raises:
        InputError: the file is missing, damaged, of another network, or has weights that are no numbers.
    """
    states = list(_states(_content(Path(checkpoint), key)))
    if not states:
        raise InputError(f"{checkpoint}: holds no tensors by name ({key}); {REMEDY}")
    wanted = net.state_dict()
    named = [again for state in states for again in spellings(net, state)]
    state = max(named, key=lambda state: _fitting(state, wanted))  # the first of equals
    for name in wanted:  # torch counts batches only since its version 0.4.1
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, wanted[name])
    try:
        net.load_state_dict(state)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error) if isinstance(error, ValueError) else difference(state, wanted) or type(error).__name__
        raise InputError(
            f"{checkpoint}: the weights do not fit the network ({reason}); check {key}, and the network's name, "
            "arguments and num_classes"
        ) from None
    for name, parameter in net.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{checkpoint}: {name} is not finite ({key}); its training went wrong, train again")


def _content(checkpoint: Path, key: str) -> Mapping[str, Any]:
    """What a file holds, by name."""
    try:
        files.check_file(checkpoint, f"train first or check the path ({key})")
        with open(checkpoint, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:  # the length of a header in JSON
            return tensors.read_tensors(checkpoint)
        with _harmless():
            return tensors.read_checkpoint(checkpoint, REMEDY)
    except FileNotFoundError:
        raise InputError(f"{checkpoint}: no such checkpoint ({key}); train first or check the path") from None
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({error.strerror}; {key}); check the path") from None


@contextmanager
def _harmless() -> Iterator[None]:
    """Within the block torch.load reads HARMLESS objects beside tensors."""
    before = [*torch.serialization.get_safe_globals()]
    torch.serialization.add_safe_globals(HARMLESS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _states(content: Mapping[Any, Any], depth: int = 3) -> Iterator[State]:
    """The tensors by name that lie in a file: in its wrappers, and beside them."""
    for wrapper in WRAPPERS if depth else ():
        if isinstance(content.get(wrapper), Mapping):
            yield from _states(content[wrapper], depth - 1)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield tensors


def spellings(net: nn.Module, state: State) -> Iterator[State]:
    """A state dict by all the names that a network may have for it.

    Args:
        net: the network; `own_names` of it, if there is such a method, turns names of others into its own.
        state: tensors by name.
    """
    clean = {INSERTED.sub("", name): tensor for name, tensor in state.items()}
    yield dict(clean)
    if hasattr(net, "own_names"):
        yield net.own_names(clean)  # type: ignore[operator]
    for prefix in PREFIXES:
        inner = {name[len(prefix) :]: tensor for name, tensor in clean.items() if name.startswith(prefix)}
        if inner:
            yield from spellings(net, inner)


def _fitting(state: State, wanted: State) -> tuple[bool, int]:
    """Whether all of a network's weights are there and no others, and how many are."""
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    fitting = sum(shapes.get(name) == tensor.shape for name, tensor in state.items())
    return fitting == len(shapes) == len(state), fitting


def difference(state: State, wanted: State) -> str:
    """The first tensor in which a state dict differs from that of a network, and how many do.

    Args:
        state: the tensors of a file by name.
        wanted: those of the network.

    Returns:
        A clause with names and shapes on both sides; "" where there is none.
    """
    other = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    wrong = [name for name in wanted if name in {*other, *missing}]
    if not wrong and not extra:
        return ""
    first = []
    if wrong:
        there = f"{_shape(state[wrong[0]])} in the file" if wrong[0] in state else "not in the file"
        first.append(f"{wrong[0]} is {there} and {_shape(wanted[wrong[0]])} in the network")
    if extra and (not wrong or wrong[0] in missing):
        first.append(f"{extra[0]} {_shape(state[extra[0]])} of the file is not in the network")
    counts = (f"{len(names)} {what}" for names, what in ((other, "of another shape"), (missing, "missing")) if names)
    more = [*counts, *([f"{len(extra)} too many"] if extra else [])]
    return f"{', and '.join(first)}; of the network's {len(wanted)} tensors {', '.join(more)}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
