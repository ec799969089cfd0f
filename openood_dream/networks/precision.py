"""The number format of a training on a CPU, by measurement of the network that is to be trained.

Which format is the faster cannot be known from a CPU's instructions: one that has bfloat16 without units for matrices is
slower in it, one with them more than twice as fast.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from openood_dream.device import autocast, dtype_name, pick_dtype
from openood_dream.store import files
from openood_dream.store.artifacts import locked

FORMATS = (torch.float32, torch.bfloat16)
PIXELS = 64 * 32 * 32  # of the batch that is measured
STEPS = 3  # of which the fastest counts
StepSeconds = Callable[[nn.Module, torch.Tensor, torch.dtype], float]


def measured_dtype(
    precision: str | None,
    net: nn.Module,
    *,
    image_size: int,
    channels: int,
    device: torch.device,
    step_seconds: StepSeconds | None = None,
) -> torch.dtype:
    """The format that a network is trained in: the one asked for, or with `auto` the faster one here.

    Both are measured where a CPU computes in both; the result is kept in the user's cache folder, so that all trainings of
    this network on this machine have the same format. No random number of anybody else is consumed.

    Args:
        precision: auto, float32 or bfloat16; None is auto.
        net: the network, which stays as it is.
        image_size: pixels a side of its images.
        channels: of its images.
        device: where it is trained.
        step_seconds: how long a step takes, of a copy of the network, images and a format; None: measures it.

    Returns:
        torch.float32 or torch.bfloat16.
    """
    known = pick_dtype(precision, device)
    if (precision or "auto") != "auto" or device.type != "cpu" or known is torch.float32:
        return known
    file, found = _file(net, image_size, channels), None
    with suppress(OSError):  # a cache folder that cannot be written to
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file):
            found = _kept(file)
            if found is None:
                found = _measured(net, image_size, channels, step_seconds or seconds)
                files.write_json(file, found)
    if found is None:
        found = _measured(net, image_size, channels, step_seconds or seconds)
    return min(FORMATS, key=lambda dtype: found[dtype_name(dtype)])


def _measured(net: nn.Module, image_size: int, channels: int, step_seconds: StepSeconds) -> dict[str, float]:
    """The seconds of a step in each format, and a line that says them."""
    batch = max(2, min(64, PIXELS // image_size**2))
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(batch, channels, image_size, image_size)
        found = {dtype_name(dtype): step_seconds(copy.deepcopy(net), images, dtype) for dtype in FORMATS}
    one, other = sorted(found, key=lambda key: found[key])
    tqdm.write(
        f"precision auto: {one}, with {1000 * found[one]:.3g} ms a step of {batch} images here; {other} takes "
        f"{1000 * found[other]:.3g} ms",
        file=sys.stderr,
    )
    return found


def seconds(net: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> float:
    """The least seconds of a few forward and backward passes.

    Args:
        net: a network, whose gradients change.
        images: (B, C, S, S).
        dtype: the format.
    """
    net.train().to(memory_format=torch.channels_last)
    images, spent = images.to(memory_format=torch.channels_last), []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        with autocast(images.device, dtype):
            out = net(images)
        out.float().square().mean().backward()
        spent.append(time.perf_counter() - start)
    return min(spent[1:])


def _file(net: nn.Module, image_size: int, channels: int) -> Path:
    """Where the result of a network is kept: by machine, threads, torch and the shapes of its parameters."""
    shapes = [[key, list(tensor.shape)] for key, tensor in net.state_dict().items()]
    about = [platform.node(), platform.processor() or platform.machine(), torch.get_num_threads(), torch.__version__]
    return files.cache_folder() / "precision" / f"{files.fingerprint([about, shapes, image_size, channels])}.json"


def _kept(file: Path) -> dict[str, float] | None:
    """What was measured before; None where there is nothing that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {dtype_name(dtype): float(found[dtype_name(dtype)]) for dtype in FORMATS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
