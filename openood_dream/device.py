"""Where computations run, and in which number format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from openood_dream.errors import InputError, out_of_memory


def pick_device(name: str | None) -> torch.device:
    """The device of the config key `device`.

    Args:
        name: auto, cpu, mps, cuda or cuda:N; auto (and None) takes CUDA, then MPS, then the CPU.

    Returns:
        The device, which torch can use here.

    Raises:
        InputError: the device is not available here.
    """
    name = name or "auto"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {name!r} cannot be used here ({reason}); expected auto, cpu, cuda or mps") from None
    return device


def pick_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The number format of the config key `precision`.

    Args:
        precision: auto, float32 or bfloat16; auto (and None) takes bfloat16 where the device computes in it.
        device: where the computation runs.

    Returns:
        torch.float32 or torch.bfloat16.
    """
    if precision in ("float32", "bfloat16"):
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        native: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        has_bf16 = native.get("avx512_bf16") or native.get("amx_bf16") or native.get("bf16")
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A number format as the config calls it."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Mixed precision in `dtype` on `device`; for float32 a context that changes nothing."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; a GPU is not waited for, since the copy is made from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def room(device: torch.device) -> int:
    """Bytes that are free in the memory of a GPU of its own; 0 for a device that shares the CPU's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def enough_memory(error: Callable[[str], InputError], what: str) -> Iterator[None]:
    """Within the block an allocation that fails becomes one line that says what to lower.

    Args:
        error: makes the error that says a text about the key to lower.
        what: what does not fit into memory, such as "64 images in a step".

    Raises:
        InputError: memory was too small.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as failed:
        if not out_of_memory(failed):
            raise
        where = "a GPU" if isinstance(failed, torch.OutOfMemoryError) else "this machine"
        raise error(f"{what} do not fit into the memory of {where}; lower it") from None
