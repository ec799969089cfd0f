"""Ray: the items of a long list, each worked on by one of many workers, on a cluster or on this machine.

Workers are actors, so that what is slow to make (a pipeline on a GPU) is made once in each.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch

from openood_dream import plugins
from openood_dream._version import __version__
from openood_dream.errors import InputError
from openood_dream.extras import check_installed

PATIENCE = 3  # how often an item is tried again after a worker has died of it

Work = Callable[[Any], None]


class Worker:
    """An actor that calls what `build` makes, in the folder that the run was started in.

    Args:
        build: makes the function that takes items.
        folder: the run's working directory.
        version: the run's version of openood-dream.
        threads: CPU threads of torch.
        files: the plugins that the run has loaded.
    """

    def __init__(
        self, build: Callable[[], Work], folder: str, version: str, threads: int, files: Sequence[str] = ()
    ) -> None:
        self.build, self.folder, self.version, self.threads, self.files = build, folder, version, threads, files
        self.do: Work | None = None

    def work(self, number: int, item: Any) -> int:
        """Works on an item and returns its number; the first one makes what works on them, and raises its errors."""
        self.do = self.do or self.start()
        self.do(item)
        return number

    def start(self) -> Work:
        """What works on items."""
        if self.version != __version__:
            raise InputError(
                f"executor: {platform.node()} has openood-dream {__version__}, the run {self.version}; expected the same"
            )
        try:
            os.chdir(self.folder)
        except OSError:
            raise InputError(
                f"executor: {platform.node()} has no folder {self.folder}; expected a file system that all share"
            ) from None
        torch.set_num_threads(self.threads)
        plugins.load_installed()
        plugins.load(self.files)
        return self.build()


def each(
    build: Callable[[], Work], items: Sequence[Any], device: str = "auto", worker_gpus: float = 1
) -> Iterator[Any]:
    """Has workers do the items, on a running cluster, or on one that is started on this machine.

    Workers have a GPU each where the cluster has any and `device` is not cpu, else as many CPU cores as torch uses
    threads in this process: sums depend on it in their last digits. Where a worker dies Ray starts another one, which
    does its item.

    Args:
        build: makes, once in every worker, the function that takes items.
        items: what is to be done.
        device: auto, cpu or cuda.
        worker_gpus: GPUs of a worker; 0.5 lets two workers share one.

    Yields:
        Each item when it is done.

    Raises:
        InputError: Ray is not installed, or no machine has what a worker needs; and whatever `build` or its function
            raised.
        OSError: one worker after another died of an item.
    """
    check_installed("executor", "ray")
    import ray

    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        yield from _each(build, items, device, worker_gpus)
    finally:
        if ours:
            ray.shutdown()


def _each(build: Callable[[], Work], items: Sequence[Any], device: str, worker_gpus: float) -> Iterator[Any]:
    import ray
    from ray.util import ActorPool

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count, needs = places(device, machines, torch.get_num_threads(), worker_gpus)
    actor = cast(Any, ray.remote)(**needs, max_restarts=-1, max_task_retries=PATIENCE)(Worker)
    given = build, os.getcwd(), __version__, needs.get("num_cpus", 1), plugins.files()
    pool = ActorPool([actor.remote(*given) for _ in range(min(count, len(items)))])
    for numbered in enumerate(items):
        pool.submit(lambda worker, numbered: worker.work.remote(*numbered), numbered)
    while pool.has_next():
        try:
            number = pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"executor: {PATIENCE + 1} Ray workers died one after another ({reason})") from error
        while pool.pop_idle() is not None:
            pass  # its place is free for a worker whose machine is gone
        yield items[number]


def places(
    device: str, machines: list[dict[str, float]], threads: int, worker_gpus: float = 1
) -> tuple[int, dict[str, float]]:
    """How many workers the machines of a cluster hold, and what each of them needs.

    Args:
        device: auto, cpu or cuda.
        machines: Ray's resources of each machine.
        threads: CPU cores of a worker without a GPU.
        worker_gpus: GPUs of a worker that has any.

    Returns:
        The number of workers, and a GPU or the cores of each as Ray's options.

    Raises:
        InputError: another device, or there is no place for a worker.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda with executor ray, which picks the GPUs, got {device!r}")
    # what a worker has of GPUs is on one machine, and a share of one is on one GPU
    there = [int(machine.get("GPU", 0)) for machine in machines]
    gpus = sum(one * int(1 / worker_gpus) if worker_gpus < 1 else int(one // worker_gpus) for one in there)
    if gpus and device != "cpu":
        return gpus, {"num_gpus": worker_gpus}
    if device == "cuda":
        raise InputError("device: the Ray cluster has no GPU; set device to cpu, or add machines that have one")
    count = sum(int(machine.get("CPU", 0)) // threads for machine in machines)
    if not count:
        most = max(int(machine.get("CPU", 0)) for machine in machines)
        raise InputError(f"executor: no machine of the Ray cluster has {threads} CPU cores; set OMP_NUM_THREADS={most}")
    return count, {"num_cpus": threads}
