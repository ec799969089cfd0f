"""Several processes on CPUs train one network; a single one notices nothing."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader
from toys import TINY, Batches, Net, oal_inputs, options

from openood_dream.errors import InputError
from openood_dream.parallel import processes as parallel
from openood_dream.parallel.processes import Processes, current, is_main_process, joined, main_process_only
from openood_dream.trainers.known import TRAINERS

CPU = torch.device("cpu")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# ------------------------------------------------------------------------------------------------------- one process


def test_one_process_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    random = torch.get_rng_state()
    net, loader = nn.Linear(2, 2), DataLoader(range(4), batch_size=3)
    torch.set_rng_state(random)
    with joined("cpu") as alone:
        assert (alone.count, alone.index, alone.is_main, alone.device) == (1, 0, True, CPU)
        assert alone.prepare(net) is net and alone.share(loader, 0) is loader
        alone.begin_epoch([loader], 3, 7)
        assert alone.broadcast("a") == "a" and alone.gather("a") == ["a"] and alone.part_of(5) == 5
        assert main_process_only(lambda: 5) == 5 and is_main_process()
    assert torch.equal(torch.get_rng_state(), random) and not dist.is_initialized()


def test_batch_that_cannot_be_shared():
    several = Processes(CPU)
    several.count = 2
    assert several.part_of(6) == 3
    with pytest.raises(ValueError, match="31 cannot be shared by 2 processes"):
        several.part_of(31)
    with pytest.raises(ValueError, match="31 cannot be shared by 2 processes"):
        several.share(DataLoader(range(40), batch_size=31), 0)


# ------------------------------------------------------------------------------------------------- several processes


def enter(rank: int, folder: str, works: tuple[Callable[[int, Path], None], ...]) -> None:
    """Joins a group as OpenOOD's launcher does: without a launcher's environment."""
    for name in LAUNCHER:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        for work in works:
            work(rank, Path(folder))
    finally:
        dist.destroy_process_group()


def spawn(folder: Path, *works: Callable[[int, Path], None]) -> None:
    """Runs functions of the rank and the folder in two processes."""
    mp.spawn(enter, (str(folder), works), nprocs=2)


def talk(rank: int, folder: Path) -> None:
    processes = current(CPU)
    assert (processes.count, processes.index, processes.is_main) == (2, rank, rank == 0) and "RANK" not in os.environ
    assert processes.broadcast(f"from {rank}") == "from 0" and processes.gather(rank * 10) == [0, 10]
    loader = processes.share(DataLoader(range(8), batch_size=4), seed=0)
    processes.begin_epoch([loader], 0, 1)
    own = [row for batch in loader for row in batch.tolist()]
    assert loader.batch_size == 2 and sorted(sum(processes.gather(own), [])) == list(range(8))
    assert len(set(processes.gather(torch.rand(()).item()))) == 2


def wait(rank: int, folder: Path) -> None:
    current(CPU)

    def work() -> str:
        assert rank == 0
        with joined("cpu") as alone:  # the others wait, and could not answer
            assert alone.count == 1 and alone.gather(1) == [1]
        return main_process_only(lambda: "done")

    assert main_process_only(work) == "done"
    assert current(CPU).count == 2

    def fail() -> None:
        raise InputError("a.yml: k: too small")

    with pytest.raises(InputError, match="too small") as caught:
        main_process_only(fail)
    assert ("the main process failed" in str(caught.value)) == (rank != 0)


@pytest.mark.slow
def test_processes_of_a_host(tmp_path):
    spawn(tmp_path, talk, wait)


def learn(rank: int, folder: Path) -> None:
    """Trains every method, one that OpenOOD wrapped too; all processes must end with the same weights."""
    for name in [*TINY, "oal"]:
        torch.manual_seed(rank)
        net = Net()
        if name in ("base", "vos"):
            net = nn.parallel.DistributedDataParallel(net)
        loaders = [Batches(12)] + [Batches(3, label=-1)] * TRAINERS[name].auxiliary
        more = oal_inputs() if name == "oal" else {}
        trainer = TRAINERS[name](net, *loaders, **options(name, epochs=2), **more)
        for epoch in (1, 2):
            found, metrics = trainer.train_epoch(epoch)
        assert found is net and ("outliers" in metrics["terms"]) == (name not in ("base", "oal"))
        trained = [*trainer.net.parameters(), *trainer.extra.parameters()]
        trained += trainer.fit_loss.parameters() if name == "oal" else []
        for one, other in zip(*trainer.processes.gather([p.detach() for p in trained])):
            assert torch.equal(one, other), name
        if trainer.memory:  # what is remembered of features is each process's own
            one, other = trainer.processes.gather(trainer.queue.rows)
            assert not torch.equal(one, other)


def average(rank: int, folder: Path) -> None:
    """Two halves of a batch give the step of the whole batch."""
    given = torch.load(folder / "given.pt", weights_only=False)
    net = given["net"]
    loaders = [[{key: batch[key][rank::2] for key in batch}] for batch in given["batches"]]
    TRAINERS["dream_ood"](net, *loaders, **options("dream_ood")).train_epoch(1)
    if rank == 0:
        torch.save(net.state_dict(), folder / "found.pt")


def test_trainers_share_gradients(tmp_path):
    net, loaders = Net(), [Batches(1, size=8), Batches(1, size=8, label=-1)]
    given = {"net": net, "batches": [loader.batches[0] for loader in loaders]}
    torch.save(copy.deepcopy(given), tmp_path / "given.pt")
    TRAINERS["dream_ood"](net, *loaders, **options("dream_ood")).train_epoch(1)
    spawn(tmp_path, average, learn)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, tensor in net.state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


LAUNCHED = """
import torch, torch.distributed as dist
from openood_dream.parallel.processes import joined
threads = torch.get_num_threads()
for _ in range(2):
    with joined("cpu") as processes:
        assert processes.count == 2 and processes.gather(processes.index) == [0, 1]
        with joined("cpu") as same:
            assert same.count == 2 and same.broadcast(same.index) == 0
    assert dist.is_initialized() and torch.get_num_threads() == threads
"""


def test_processes_of_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(LAUNCHED)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with open(tmp_path / "log", "w+") as log:  # not a pipe, which workers that outlive the launcher would hold open
        launcher = subprocess.Popen(
            [*words, str(tmp_path / "script.py")], stdout=log, stderr=log, start_new_session=True
        )
        try:
            assert launcher.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)


def test_device_that_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "pick_device", lambda name: torch.device("mps"))
    with pytest.raises(InputError, match="device: several processes cannot train on mps"), joined("mps"):
        pass
