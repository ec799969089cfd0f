"""Training in several processes: torchrun starts them, each takes its share of every batch, and gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from openood_dream.config import InputError
from openood_dream.networks import pick_device


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def joined(name: str | None) -> Iterator[torch.device]:
    """The device `name` in this process, which for the length of the block works together with those torchrun started."""
    device = pick_device(name)
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(loader: DataLoader, seed: int) -> DataLoader:
    """The loader of this process's share of every batch; InputError for batches that cannot be shared evenly."""
    if size() == 1:
        return loader
    if loader.batch_size % size():
        raise InputError(
            f"dataset: batch_size: {loader.batch_size} cannot be shared by {size()} processes; choose another"
        )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size // size(),
        sampler=DistributedSampler(loader.dataset, seed=seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


def begin_epoch(loaders: Iterable[DataLoader], seed: int, epoch: int) -> None:
    """Gives every process its own images and random numbers in an epoch; a single one just goes on with its own."""
    if size() > 1:
        torch.manual_seed((seed * 1_000_003 + epoch) * size() + dist.get_rank())
        for loader in loaders:
            loader.sampler.set_epoch(epoch)


def together(net: nn.Module) -> nn.Module:
    """The network with its gradients averaged over all processes."""
    if size() == 1:
        return net
    net.to(memory_format=torch.channels_last)  # before DDP lays out its buckets
    device = next(net.parameters()).device
    return nn.parallel.DistributedDataParallel(net, [device] if device.type == "cuda" else None)


def same(part: nn.Module) -> None:
    """Gives what is trained besides the network the first process's values everywhere."""
    if size() > 1:
        for parameter in part.parameters():
            dist.broadcast(parameter.data, src=0)


def average_gradients(part: nn.Module) -> None:
    """Averages the gradients of what is trained besides the network; the network is DDP's business.

    A process whose queue is not full yet has no gradient where another one has: it counts as zero.
    """
    if size() > 1:
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= size()


def first_process_only(work: Callable[[], Any]) -> Any:
    """What `work` returns in the first process, in all of them; where it fails there, InputError in the others."""
    if not dist.is_initialized():
        return work()
    # a group of its own, made before the waiting begins, since the default one gives up after 30 minutes
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    found: list[Any] = [None, "it ended"]  # what it returned, what went wrong
    try:
        if dist.get_rank() == 0:
            found[:] = work(), None
    except BaseException as error:
        found[1] = f"{type(error).__name__}: {error}"
        raise
    finally:
        dist.broadcast_object_list(found, src=0, group=group)
        dist.destroy_process_group(group)
    if found[1] is not None:
        raise InputError(f"the first process failed ({found[1]})")
    return found[0]
