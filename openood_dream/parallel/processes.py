"""Training in several processes: accelerate or torchrun starts them, each takes its share of every batch.

Where there is one process alone nothing of this does anything: modules and loaders stay as they are.
"""

from __future__ import annotations

import atexit
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object, patch_environment
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from openood_dream.device import pick_device
from openood_dream.errors import InputError

T = TypeVar("T")

_alone = ContextVar("alone", default=False)  # whether the main process is at work while the others wait for it


class Processes:
    """The processes that train one network together, and the place of this one among them.

    Args:
        device: where this process computes.
        accelerator: accelerate's access to the others, or None for a process on its own.
    """

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.device, self.accelerator = device, accelerator
        self.count = accelerator.num_processes if accelerator else 1
        self.index = accelerator.process_index if accelerator else 0
        self.is_main = self.index == 0

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes, which begin with the weights of the main one.

        Its parameters and buffers must be on the device, and its output depend on them through `forward` alone.
        Parameters that have no gradient in one process count there as zero.
        """
        if self.accelerator is None:
            return module
        return self.accelerator.prepare_model(module, device_placement=False)

    def part_of(self, batch_size: int) -> int:
        """How many images of a batch are this process's; ValueError where all cannot have as many."""
        if batch_size % self.count:
            raise ValueError(f"{batch_size} cannot be shared by {self.count} processes; expected a multiple of it")
        return batch_size // self.count

    def share(self, loader: DataLoader, seed: int) -> DataLoader:
        """A loader of this process's share of every batch.

        Args:
            loader: shuffled batches of a data set.
            seed: seed of the order in which several processes go through the data set.

        Returns:
            The loader itself where there is one process.

        Raises:
            ValueError: the batch size is no multiple of the number of processes.
        """
        if self.count == 1:
            return loader
        batch_size = self.part_of(cast(int, loader.batch_size))
        each = math.ceil(len(cast(Sized, loader.dataset)) / self.count)
        return DataLoader(
            loader.dataset,
            batch_size=batch_size,
            sampler=DistributedSampler(loader.dataset, self.count, self.index, seed=seed),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            drop_last=loader.drop_last or each % batch_size == 1,  # batch normalisation takes no image alone
        )

    def begin_epoch(self, loaders: Iterable[DataLoader], seed: int, epoch: int) -> None:
        """Gives every process its own images and random numbers in an epoch; a single one goes on with its own.

        Args:
            loaders: the loaders that `share` made.
            seed: seed of the training.
            epoch: number of the epoch.
        """
        if self.count > 1:
            torch.manual_seed((seed * 1_000_003 + epoch) * self.count + self.index)
            for loader in loaders:
                cast(DistributedSampler, loader.sampler).set_epoch(epoch)

    def broadcast(self, value: T) -> T:
        """In every process the value of the main one."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def gather(self, value: T) -> list[T]:
        """In every process the values of all, in the order of their indices."""
        return [value] if self.count == 1 else gather_object([value])

    def progress(self, **options: Any) -> tqdm:
        """A bar of tqdm's in the main process, and one that shows nothing in the others."""
        return tqdm(**options if self.is_main else options | {"disable": True})


@contextmanager
def joined(device_name: str | None) -> Iterator[Processes]:
    """The processes that `torchrun` or `accelerate launch` started.

    They stay connected until they end: processes that connected again would meet at addresses of the first time, which
    the launcher's store still has.

    Args:
        device_name: the config key `device`; several processes on GPUs have one each.

    Yields:
        The processes; a single one where nothing launched several. Within another such block, its processes.
    """
    device = pick_device(device_name)
    if _alone.get() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield current(device)
        return
    processes = _connected(device)
    atexit.register(_disconnect)
    yield processes


def current(device: torch.device) -> Processes:
    """The processes that are connected already, by `joined` or by a host such as OpenOOD, or this one alone.

    Within `main_process_only` the main process is alone, since the others wait.

    Args:
        device: where this process computes.
    """
    if _alone.get() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Processes(device)
    # a host that spawned its processes has set none of what a launcher sets and accelerate reads
    rank, count = dist.get_rank(), dist.get_world_size()
    gpu = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    local = rank if device.type == "cpu" else gpu
    known = {"rank": rank, "world_size": count, "local_rank": local}
    with patch_environment(**known, local_world_size=os.environ.get("LOCAL_WORLD_SIZE", count)):
        return _connected(device)


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _connected(device: torch.device) -> Processes:
    """This process among those that the environment tells of; connects them where they are not."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: several processes cannot train on {device.type}; expected cpu or cuda")
    options = DistributedDataParallelKwargs(find_unused_parameters=True)
    # some methods leave parameters out in some steps; torch would say of the others that they do not
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    # accelerate would guess at threads, and sums depend on their number in the last digits
    with patch_environment(omp_num_threads=torch.get_num_threads()):
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
    return Processes(accelerator.device, accelerator)


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def unwrap_model(net: nn.Module) -> nn.Module:
    """The network itself, out of what averages its gradients over processes."""
    return net.module if isinstance(net, DistributedDataParallel) else net


def main_process_only(work: Callable[[], T]) -> T:
    """Does something in the main process alone, while the others wait for it, however long it takes.

    Args:
        work: what to do; what it returns must be picklable where there are several processes.

    Returns:
        What it returned, in every process.

    Raises:
        InputError: in the other processes, where it failed in the main one; there, its own exception.
    """
    if _alone.get() or not dist.is_initialized():
        return work()
    # a group of its own, made before the waiting begins, since the default one gives up after 30 minutes
    group = cast(Any, dist.new_group)(backend="gloo", timeout=timedelta(days=30))
    found: list[Any] = [None, "it ended"]  # what it returned, what went wrong
    alone = _alone.set(True)
    try:
        if dist.get_rank() == 0:
            found[:] = work(), None
    except BaseException as error:
        found[1] = f"{type(error).__name__}: {error}"
        raise
    finally:
        _alone.reset(alone)
        dist.broadcast_object_list(found, src=0, group=group)
        dist.destroy_process_group(group)
    if found[1] is not None:
        raise InputError(f"the main process failed ({found[1]})")
    return found[0]
