"""Ray workers: every item once, whoever dies, and the same bytes as in one process."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from openood_dream.dream.image_set import verify
from openood_dream.errors import InputError

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'openood-dream[ray]'")
psutil = pytest.importorskip("psutil")

from openood_dream.parallel import ray as workers  # noqa: E402

MANY = ("--dream.synthesis.per_class", "10", "--dream.synthesis.shard_size", "4", "--dream.synthesis.batch_size", "2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine with two workers of one thread, as this process has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


def test_every_item_once(cluster, tmp_path):
    def build():
        (tmp_path / f"built-{os.getpid()}").touch()
        return lambda item: (tmp_path / f"{item}").write_text(str(os.getpid()))

    items = [f"item {i}" for i in range(20)]
    assert sorted(workers.each(build, items)) == sorted(items)
    built = {path.name.removeprefix("built-") for path in tmp_path.glob("built-*")}
    assert {(tmp_path / item).read_text() for item in items} <= built and len(built) <= 2


def test_no_items(cluster):
    assert list(workers.each(lambda: print, [])) == []


@pytest.mark.slow
def test_worker_that_dies(cluster, tmp_path):
    def build():
        def work(item):
            if item == 3 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (tmp_path / f"{item}").touch()

        return work

    assert sorted(workers.each(build, range(6))) == list(range(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*map(str, range(6)), "died"]


@pytest.mark.slow
def test_item_that_kills_every_worker(cluster, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(OSError, match="executor: 2 Ray workers died one after another") as caught:
        list(workers.each(lambda: lambda item: os.kill(os.getpid(), signal.SIGKILL), [0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["build", "work"])
def test_errors_of_workers(cluster, where):
    def fail(*args):
        raise InputError("dream.generator: no such pipeline")

    build = fail if where == "build" else lambda: fail
    with pytest.raises(InputError) as caught:
        list(workers.each(build, [1]))
    assert type(caught.value) is InputError and str(caught.value) == "dream.generator: no such pipeline"


@pytest.mark.slow
def test_folder_of_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(workers.each(lambda: lambda item: Path(item).touch(), ["here"])) == ["here"]
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "device, machines, threads, expected",
    [
        ("auto", [{"CPU": 8.0}], 1, (8, {"num_cpus": 1})),
        ("auto", [{"CPU": 8.0}, {"CPU": 3.0}], 2, (5, {"num_cpus": 2})),
        ("auto", [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], 4, (2, {"num_gpus": 1})),
        ("cuda", [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], 8, (3, {"num_gpus": 1})),
        ("cpu", [{"CPU": 8.0, "GPU": 2.0}], 8, (1, {"num_cpus": 8})),
    ],
)
def test_places(device, machines, threads, expected):
    assert workers.places(device, machines, threads) == expected


@pytest.mark.parametrize("worker_gpus, expected", [(0.5, 6), (0.3, 9), (1, 3), (2, 1)])
def test_places_of_workers_that_share_gpus(worker_gpus, expected):
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert workers.places("auto", machines, 1, worker_gpus) == (expected, {"num_gpus": worker_gpus})


@pytest.mark.parametrize(
    "device, threads, problem",
    [
        ("cuda", 1, "device: the Ray cluster has no GPU"),
        ("cuda:1", 1, "device: expected auto, cpu or cuda"),
        ("auto", 16, "no machine of the Ray cluster has 16 CPU cores; set OMP_NUM_THREADS=8"),
    ],
)
def test_no_place(device, threads, problem):
    with pytest.raises(InputError, match=problem):
        workers.places(device, [{"CPU": 8.0}, {"CPU": 2.0}], threads)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="executor: ray is not installed"):
        list(workers.each(lambda: print, [1]))


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.png"), folder / "imglist.txt"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_killed_while_drawing(cluster, tiny, dream):
    """Two workers, one of them killed, draw the set of one process. Ray names processes after what they do."""
    expected = tiny.config(*MANY, "--dream.synthesis.seed", "5").imagination.images
    kept = expected.path.rename(expected.path.with_name("local"))
    killed = []

    def kill() -> None:
        while not killed:
            for process in psutil.process_iter():
                tables = list(expected.path.glob("shards/0*.parquet"))
                if tables and process.name().startswith("ray::Worker.work") and process.is_running():
                    process.kill()
                    killed.append((process.pid, len(tables)))
                    return
            time.sleep(0.002)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = tiny.config(*MANY, "--dream.synthesis.seed", "5", "--executor", "ray").imagination.images
    assert killed and killed[0][1] < 15, "no worker was killed while it drew"
    assert found.path == expected.path and not found.reused
    assert digests(found.path) == digests(kept)
    assert verify(found.path)[1] == {}
