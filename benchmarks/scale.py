"""A large image set and a large space on one machine: `python benchmarks/scale.py images` or `... outliers`.

`images` draws `--classes` times `--per-class` images of 8x8 pixels of noise, which stand for those of a pipeline; all else
is what `imagine` does. Workers die while they draw, and half-way the run itself. `outliers` samples around made-up
embeddings of 768 numbers. Both print what took how long, as the rows of a table in docs/scale.md.

64 Ray workers need 36 GB, as each imports torch and diffusers anew. Where there is less, `--workers fork` has them forked
from one process, which share what it imported; they get shards, die and are replaced as Ray's are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F

from openood_dream.dream import image_set, images, outliers
from openood_dream.dream.samplers.knn import KNNSettings
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.store import artifacts
from openood_dream.store.artifacts import Artifact
from openood_dream.store.tables import write_table
from openood_dream.store.tensors import write_index, write_tensors

PIXELS, WIDTH = 8, 768
SHARD = 256
spent: dict[str, float] = {}  # seconds, by what they were spent on


# --------------------------------------------------------------------------------------------------------- measuring


def timed(place: Any, name: str, words: str) -> None:
    """Has the seconds of a function of a module added to those of `words`."""
    function = getattr(place, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[words] = spent.get(words, 0) + time.perf_counter() - start

    setattr(place, name, measured)


def memory() -> float:
    """Megabytes of this process that are no pages of files, which the system can take back."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1e3


@contextmanager
def measured(words: str) -> Iterator[None]:
    """Prints the seconds of the block, and the most memory that it took on top of what was there."""
    before, most, ended = memory(), [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], memory() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    show(words, f"{seconds:.1f} s, {most[0]:.0f} MB")


def show(words: str, value: str) -> None:
    print(f"| {words} | {value} |", flush=True)


# ------------------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class FakeSource:
    """A pipeline of which there is but the name."""

    path: str = "noise"
    identity: str = "noise"


class Noise:
    """Stands for the Imaginer: noise of each image's own seed."""

    def __init__(self, pipeline: None, names: Sequence[str], settings: SynthesisSettings) -> None:
        pass

    def __call__(self, labels: Any, tokens: Any, seeds: Sequence[int], lost: Any = None) -> torch.Tensor:
        shape = (3, PIXELS, PIXELS)
        drawn = [np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in seeds]
        return torch.from_numpy(np.stack(drawn))


class FakeShards(images.Shards):
    """Shards of noise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        images.load_pipeline = images.check_anchors = lambda *rest: None  # here, so that workers have them too
        images.Imaginer = Noise
        super().__init__(*args, **kwargs)


def fake_outliers(folder: Path, classes: int, per_class: int) -> Artifact:
    """An artifact of `per_class` outliers of each class, of few numbers each."""
    parts = [folder / "classes" / f"{label:06d}.safetensors" for label in range(classes)]
    if not (folder / "outliers.parquet").exists():
        for label, part in enumerate(parts):
            write_tensors(part, **{f"embeddings.{label}": torch.randn(per_class, 4)})
        write_index(folder, "embeddings", parts)
        labels = np.repeat(np.arange(classes), per_class)
        write_table(folder / "outliers.parquet", pd.DataFrame({"class": labels, "boundary": 0, "distance": 1.0}))
    return Artifact(folder, {"hash": "fake", "inputs": {"outliers": {"method": "knn"}}}, False)


def forked(count: int) -> Callable[..., Iterator[Any]]:
    """Stands for `parallel.ray.each`: `count` workers forked from this process; an item whose worker dies is done again."""
    context = multiprocessing.get_context("fork")

    def start(build: Callable[[], Callable[[Any], None]]) -> tuple[Any, Any]:
        ours, theirs = context.Pipe()

        def work() -> None:
            ours.close()
            do = build()
            while True:
                item = theirs.recv()
                do(item)
                theirs.send(item)

        process = context.Process(target=work, daemon=True)
        process.start()
        theirs.close()
        return ours, process

    def each(build: Callable[[], Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:
        todo, doing = list(reversed(items)), {}

        def give(pipe: Any, process: Any) -> None:
            doing[pipe] = todo.pop(), process
            with suppress(OSError):  # of a worker that is dead already, which `wait` finds out
                pipe.send(doing[pipe][0])

        for pipe, process in [start(build) for _ in range(min(count, len(todo)))]:
            give(pipe, process)
        while doing:
            for pipe in wait(list(doing)):
                item, process = doing.pop(pipe)
                try:
                    yield pipe.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    todo.append(item)
                    pipe, process = start(build)
                if todo:
                    give(pipe, process)
                else:
                    process.terminate()

    return each


def draw(options: argparse.Namespace) -> Artifact:
    """The set, by `imagine`'s own function; workers die while it draws."""
    torch.set_num_threads(1)
    images.Shards = FakeShards
    timed(images, "join_shards", "joining the shards' tables")
    timed(artifacts, "settle", "making sure that all is on the disk")
    if options.workers != "ray":
        images.ray.each = forked(options.count)
    else:
        import ray

        ray.init(address="local", num_cpus=options.count, include_dashboard=False, log_to_driver=False)
    settings = SynthesisSettings(per_class=options.per_class, size=8, save_size=8, batch_size=SHARD, shard_size=SHARD)
    source = fake_outliers(options.folder / "outliers", options.classes, options.per_class)
    names = [f"class {label}" for label in range(options.classes)]
    ended = threading.Event()
    reaper = threading.Thread(target=reap, args=(ended, options.deaths), daemon=True)
    reaper.start()
    try:
        return images.make_images(
            FakeSource(), source, names, settings, options.folder, keeps_class=False, device="cpu", executor="ray"
        )
    finally:
        ended.set()


def reap(ended: threading.Event, seconds: float) -> None:
    """Kills a worker every so many seconds."""
    chance = random.Random(0)  # noqa: S311
    while not ended.wait(seconds):
        everybody = psutil.Process().children(recursive=True)
        workers = [one for one in everybody if one.name().startswith("ray::Worker") or one.ppid() == os.getpid()]
        workers = [one for one in workers if "raylet" not in one.name() and "gcs" not in one.name()]
        if workers:
            chance.choice(workers).kill()
            spent["deaths"] = spent.get("deaths", 0) + 1


def tables(folder: Path) -> int:
    """How many shards are finished."""
    return sum(len(list(place.glob("[0-9]*.parquet"))) for place in folder.glob("images-*/shards"))


def finished(run: subprocess.Popen[str], folder: Path, until: int) -> bool:
    """Waits until so many shards are there; False if the run ends before."""
    while tables(folder) < until:
        if run.poll() is not None:
            return False
        time.sleep(0.2)
    return True


def image_sets(options: argparse.Namespace) -> None:
    """Draws a set in two runs, of which the first is killed half-way, and verifies it."""
    total = options.classes * options.per_class
    half = len(image_set.shards(total, SHARD)) // 2
    words = [sys.executable, __file__, "draw", *sys.argv[2:], "--folder", str(options.folder)]
    rates = []
    for until in (half, 0):
        before, start = tables(options.folder), time.perf_counter()
        run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert finished(run, options.folder, before + 1), "the run failed"
        first, at = time.perf_counter() - start, (time.perf_counter(), tables(options.folder))
        if until and finished(run, options.folder, until):
            rates.append((tables(options.folder) - at[1]) * SHARD / (time.perf_counter() - at[0]))
            for one in psutil.Process(run.pid).children(recursive=True):
                one.kill()
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            show(f"first shard of {2 * half}, and images/s until half are drawn", f"{first:.1f} s, {rates[0]:.0f}")
        else:
            out, _ = run.communicate()
            assert run.returncode == 0, "the run failed"
            show(f"first new shard after the run was killed at {before} shards", f"{first:.1f} s")
            print(out, end="")
    (folder,) = options.folder.glob("images-*")
    for name in ("manifest.json", "images.parquet", "imglist.txt"):
        show(name, f"{(folder / name).stat().st_size / 1e6:.3g} MB")
    shards = [path.stat().st_size for path in (folder / "shards").iterdir()]
    show(f"{len(shards)} tables of shards", f"{sum(shards) / 1e6:.3g} MB")
    with measured("verify: time, memory"):
        count, problems, _ = image_set.verify(folder)
    assert (count, problems) == (total, {}), problems


def one_run(options: argparse.Namespace) -> None:
    """A run of `image_sets`."""
    start = time.perf_counter()
    draw(options)
    show(
        f"this run: seconds, workers, deaths ({time.strftime('%H:%M')})",
        f"{time.perf_counter() - start:.1f} s, {options.count}, {spent.pop('deaths', 0):.0f}",
    )
    for words, seconds in spent.items():
        show(words, f"{seconds:.1f} s")


# ---------------------------------------------------------------------------------------------------------- outliers


def fake_space(folder: Path, classes: int, per_class: int) -> tuple[Artifact, Artifact]:
    """Artifacts of anchors, and of embeddings around them, written in a process of their own that gives its memory back."""
    anchors = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(0))
    write_tensors(folder / "anchors" / "anchors.safetensors", anchors=anchors)

    def write() -> None:
        labels = torch.arange(classes).repeat_interleave(per_class)
        embeddings = torch.empty(len(labels), WIDTH)
        for part in range(0, len(labels), 1 << 15):
            some = F.normalize(anchors[labels[part : part + (1 << 15)]], dim=1)
            embeddings[part : part + len(some)] = F.normalize(some + torch.randn_like(some) / WIDTH**0.5, dim=1)
        rows = torch.arange(len(labels))
        write_tensors(folder / "space" / "embeddings.safetensors", embeddings=embeddings, labels=labels, rows=rows)

    writer = multiprocessing.get_context("fork").Process(target=write)
    writer.start()
    writer.join()
    assert not writer.exitcode, "the embeddings could not be written"
    return Artifact(folder / "anchors", {}, False), Artifact(folder / "space", {"hash": "fake"}, False)


def sampling(options: argparse.Namespace) -> None:
    """Samples around 768 numbers of each image, with the settings of DREAM-OOD for ImageNet but for the rounds."""
    torch.set_num_threads(1)  # before the fork
    anchors, space = fake_space(options.folder, options.classes, options.per_class)
    torch.set_num_threads(options.threads)
    names = [f"class {label}" for label in range(options.classes)]
    settings = KNNSettings(sigma=0.03, select=200, rounds=options.rounds, neighbours=options.neighbours)
    timed(outliers, "load_space", "mapping the embeddings")
    timed(outliers, "_check_anchors_and_space", "checking them")
    timed(outliers.Index, "of", "making the index")
    timed(outliers, "_join", "joining the classes' tables")
    total = options.classes * options.per_class
    with measured(f"sampling around {total} embeddings, neighbours {options.neighbours}: time, memory"):
        made = outliers.make_outliers(anchors, space, names, settings, 0.1, options.folder, device="cpu")
    table, _ = outliers.load_outliers(made)
    show("outliers", str(len(table)))
    for words, seconds in spent.items():
        show(words, f"{seconds:.1f} s")


# -------------------------------------------------------------------------------------------------------------- both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["images", "outliers", "draw"])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=1280)
    parser.add_argument("--workers", choices=["fork", "ray"], default="fork")
    parser.add_argument("--count", type=int, default=64, help="of workers")
    parser.add_argument("--deaths", type=float, default=5, help="seconds between deaths of workers")
    parser.add_argument("--rounds", type=int, default=13, help="of sampling, with 100 outliers of a class in each")
    parser.add_argument("--neighbours", choices=["class", "all"], default="class")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of sampling")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    if options.what == "draw":
        one_run(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        {"images": image_sets, "outliers": sampling}[options.what](options)


if __name__ == "__main__":
    main()
