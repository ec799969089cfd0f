"""Ray: the items of a long list, each worked on by one of many workers, on a cluster or on this machine.

Workers are actors, so that what is slow to make (a pipeline on a GPU) is made once in each.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from openood_dream import __version__
from openood_dream.config import InputError

try:
    import ray
except ImportError:
    raise InputError("executor: ray is not installed; pip install 'openood-dream[ray]'") from None

PATIENCE = 3  # deaths in a row for each worker, with no item finished between them, after which the run ends


class Worker:
    """An actor that calls what `build` makes."""

    def start(self, build: Callable[[], Callable[[Any], None]], folder: str, version: str, threads: int) -> None:
        """Makes what works on items, in the folder that the run was started in."""
        if version != __version__:
            raise InputError(
                f"executor: {platform.node()} has openood-dream {__version__}, the run {version}; expected the same"
            )
        try:
            os.chdir(folder)
        except OSError:
            raise InputError(
                f"executor: {platform.node()} has no folder {folder}; expected a file system that all machines share"
            ) from None
        torch.set_num_threads(threads)
        self.do = build()

    def work(self, item: Any) -> None:
        self.do(item)


def each(build: Callable[[], Callable[[Any], None]], items: Sequence[Any], device: str = "auto") -> Iterator[Any]:
    """Yields each item when a worker has done it: `build()` makes, once in every worker, the function that takes items.

    Workers have a GPU each where the cluster has any and `device` is not cpu, else as many CPU cores as torch uses
    threads in this process: sums depend on it in their last digits. The item of a worker that dies goes to another one.
    Connects to a running cluster, or starts one on this machine. Raises what `build` or its function raised, InputError
    for a device that no worker has, and OSError where workers die one after another.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        yield from _each(build, items, device)
    finally:
        if ours:
            ray.shutdown()


def _each(build: Callable, items: Sequence[Any], device: str) -> Iterator[Any]:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count, needs = places(device, machines, torch.get_num_threads())
    actor = ray.remote(**needs)(Worker)
    waiting, left, deaths = deque(items), len(items), 0
    busy: dict[ray.ObjectRef, tuple[Any, Any]] = {}  # call -> worker, and its item once it has started

    def hire() -> None:
        worker = actor.remote()
        busy[worker.start.remote(build, os.getcwd(), __version__, needs.get("num_cpus", 1))] = (worker, None)

    count = min(count, left)
    for _ in range(count):
        hire()
    while left:
        (call,), _ = ray.wait(list(busy), num_returns=1)
        worker, item = busy.pop(call)
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:  # the worker or its machine died
            deaths += 1
            if deaths > PATIENCE * count:
                reason = str(error).strip().partition("\n")[0]
                raise OSError(f"executor: {deaths} Ray workers died one after another ({reason})") from error
            waiting.extend([] if item is None else [item])
            hire()
            continue
        if item is not None:
            left, deaths = left - 1, 0
            yield item
        if waiting:  # else the worker goes, with its GPU
            item = waiting.popleft()
            busy[worker.work.remote(item)] = (worker, item)


def places(device: str, machines: list[dict[str, float]], threads: int) -> tuple[int, dict[str, int]]:
    """How many workers the machines of a cluster hold, and what each worker needs: a GPU, or as many cores as threads."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda with executor ray, which picks the GPUs, got {device!r}")
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus and device != "cpu":
        return gpus, {"num_gpus": 1}
    if device == "cuda":
        raise InputError("device: the Ray cluster has no GPU; set device to cpu, or add machines that have one")
    count = sum(int(machine.get("CPU", 0)) // threads for machine in machines)
    if not count:
        most = max(int(machine.get("CPU", 0)) for machine in machines)
        raise InputError(f"executor: no machine of the Ray cluster has {threads} CPU cores; set OMP_NUM_THREADS={most}")
    return count, {"num_cpus": threads}
