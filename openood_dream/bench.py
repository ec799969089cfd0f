"""How fast a method is, as a ratio to another one: what the pytest fixture `against` does, and what it is given to compare.

The fixture times two functions in turns; pytest-benchmark keeps the seconds, and a table of all ratios ends the run
(`pytest_openood_dream.py` is the plugin that pytest loads). `training`, `scoring` and `sampling` make functions of a
config and the name of a trainer, a postprocessor or a sampler: ours, of a plugin, or with `--backend openood` OpenOOD's.
They need no data: images and embeddings are random numbers of the sizes that the config says.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from openood_dream.config.files import shipped_configs
from openood_dream.device import pick_device
from openood_dream.dream.samplers import get_sampler
from openood_dream.dream.settings import GeneratorTraining
from openood_dream.experiment import Experiment, load_config
from openood_dream.networks.factory import get_network
from openood_dream.openood import compat, host
from openood_dream.openood.detector import HostDetector
from openood_dream.pipelines.train import teacher_data, training_plan
from openood_dream.postprocessors.base import POSTPROCESSORS, find_postprocessor
from openood_dream.sampling.knn import Index
from openood_dream.trainers.known import TRAINERS, get_trainer

STEPS = 5  # of a training that is timed
IMAGES = 512  # that are scored; more where there are many classes, so that each has some
WIDTH = 768  # of the embeddings of a pipeline that is given

COLUMNS = ("benchmark", "ours", "reference", "ratio", "wanted", "besides")
KNOWN = ("reference", "reference_seconds", "ratio", "wanted")

# ---------------------------------------------------------------------------------------------------- the comparison


def against(
    benchmark: Any,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    words: str,
    *,
    wanted: float | None = None,
    rounds: int = 5,
    reference_rounds: int = 3,
    warmup: bool = True,
) -> tuple[Any, Any]:
    """Times two functions in turns, each until the GPU has done all that it was asked for, and records the comparison.

    The comparison is kept in `benchmark.extra_info`: `reference` (the words), `reference_seconds` (the least of them),
    `ratio` (of these to our least seconds; above 1, ours is the faster) and `wanted`.

    Args:
        benchmark: the fixture of pytest-benchmark.
        ours: the function of the method.
        reference: what it is compared with. It runs before the first `reference_rounds` rounds.
        words: what the reference is, in a few words.
        wanted: the ratio that is promised, if one is; a missed one is marked in the table, and fails nothing.
        rounds: how often ours is timed.
        reference_rounds: how often the reference is timed.
        warmup: whether both run once before.

    Returns:
        What `ours` and `reference` returned last.
    """
    spent: list[float] = []
    expected = None
    with ExitStack() as round_:  # what ours needs around it, which is not timed

        def before() -> None:
            nonlocal expected
            if len(spent) < reference_rounds + warmup:
                with _around(reference) as work:
                    synchronize()
                    start = time.perf_counter()
                    expected = work()
                    synchronize()
                    spent.append(time.perf_counter() - start)
            round_.enter_context(_around(ours))
            synchronize()

        def done() -> Any:
            found = _bare(ours)()
            synchronize()
            return found

        result = benchmark.pedantic(done, setup=before, teardown=round_.close, rounds=rounds, warmup_rounds=int(warmup))
    if benchmark.stats is not None:  # with --benchmark-disable nothing is timed
        ratio = min(spent) / benchmark.stats.stats.min
        benchmark.extra_info |= {"reference": words, "reference_seconds": min(spent), "ratio": ratio}
        benchmark.extra_info |= {} if wanted is None else {"wanted": wanted}
    return result, expected


class OnHost:
    """What OpenOOD does on this machine.

    Args:
        work: the function.
        cpu: whether the CPU stands in for CUDA.
    """

    def __init__(self, work: Callable[[], Any], cpu: bool) -> None:
        self.work, self.cpu = work, cpu

    def __call__(self) -> Any:
        with compat.enabled(self.cpu):
            return self.work()


@contextmanager
def _around(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """A block in which the bare function can be called, without the time that it takes to make OpenOOD run here."""
    with compat.enabled(work.cpu) if isinstance(work, OnHost) else nullcontext():
        yield _bare(work)


def _bare(work: Callable[[], Any]) -> Callable[[], Any]:
    return work.work if isinstance(work, OnHost) else work


def synchronize() -> None:
    """Waits until the GPU has done all that it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of the table of all comparisons, in Markdown, below a line that names the machine.

    Args:
        rows: for each `file`, `name` and `seconds`, and what `benchmark.extra_info` had.
    """
    cells = (COLUMNS, ["---"] * len(COLUMNS), *map(_cells, rows))
    return [machine(), *(f"| {' | '.join(row)} |" for row in cells)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['file'].removeprefix('bench_')}: {row['name'].removeprefix('test_').replace('_', ' ')}"
    if "ratio" not in row:
        return [name, duration(row["seconds"]), "", "", "", _besides(row)]
    reference = f"{row['reference']}, {duration(row['reference_seconds'])}"
    missed = "" if row["ratio"] >= row.get("wanted", 0) else " (missed)"
    wanted = f"{row['wanted']:.3g}x{missed}" if "wanted" in row else ""
    return [name, duration(row["seconds"]), reference, f"{row['ratio']:.3g}x", wanted, _besides(row)]


def _besides(row: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in row.items() if key not in (*KNOWN, "file", "name", "seconds")}
    shown = {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in rest.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:.3g} min"


def machine() -> str:
    """The machine and the libraries that decide about speed, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


# ------------------------------------------------------------------------------------------------- what is compared


class _Random(Dataset):
    """Random images (3, S, S) and labels, in OpenOOD's form."""

    def __init__(self, count: int, shape: Mapping[str, int], label: int | None = None) -> None:
        size, classes = shape["image_size"], shape["num_classes"]
        self.images = torch.randn(count, shape["channels"], size, size, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) % classes if label is None else torch.full((count,), label)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"data": self.images[row], "label": self.labels[row], "index": row}


def training(files: str | Path | Iterable[str | Path], name: str = "base", *overrides: str) -> Callable[[], Any]:
    """Training with a trainer for a few steps, as late as in the last epoch.

    Args:
        files: config files with a dataset, a network and an optimizer.
        name: the trainer.
        overrides: words such as ("--backend", "openood") laid over them.

    Returns:
        A function that trains for STEPS steps.

    Raises:
        InputError: the config is not fit for it, or nobody knows the trainer.
    """
    experiment = load_config(files, ["--trainer.name", name, *overrides])
    size, shape = experiment.dataset.split("train").needs_batch_size(), experiment.dataset.shape
    cls, epoch = TRAINERS.get(name), experiment.optimizer.num_epochs
    auxiliary = cls.auxiliary if cls else experiment.pipeline.name == "train_oe"
    labels = [None, -1] if auxiliary else [None]
    loaders = [DataLoader(_Random(size * STEPS, shape, label), batch_size=size) for label in labels]
    if host.wanted(experiment):
        if auxiliary and not experiment.at("dataset.oe"):
            experiment = experiment.changed({"dataset.oe": experiment.at("dataset.train")})
        experiment = experiment.changed({"pipeline.name": "train_oe" if auxiliary else "train"})
        trainer, cpu = _of_openood(experiment, "trainer", loaders if auxiliary else loaders[0])
        return OnHost(lambda: trainer.train_epoch(epoch), cpu)
    cls = get_trainer(experiment.trainer)
    cls.check_plan(experiment.trainer, training_plan(experiment))
    given = teacher_data(experiment).teacher_inputs if cls.needs_teacher else {}
    trainer = cls(
        _network(experiment),
        *loaders,
        settings=experiment.trainer,
        optimizer=experiment.optimizer,
        precision=experiment.run.precision,
        **given,
    )
    return lambda: trainer.train_epoch(epoch)


def scoring(files: str | Path | Iterable[str | Path], name: str = "msp", *overrides: str) -> Callable[[], Any]:
    """Scoring images with a postprocessor, the pass of the network included; it is fitted before.

    Args:
        files: config files with a dataset and a network.
        name: the postprocessor; postprocessors/<name>.yml is laid over the config where there is such a file.
        overrides: words laid over them.

    Returns:
        A function that scores the images.

    Raises:
        InputError: the config is not fit for it, or nobody knows the postprocessor.
    """
    layers, own = [files] if isinstance(files, (str, Path)) else list(files), f"postprocessors/{name}.yml"
    if Path(own).is_file() or (shipped_configs() / own).is_file():
        layers.append(own)
    words = ["--postprocessor.name", name, "--postprocessor.APS_mode", "false"]
    experiment = load_config(layers, [*words, *overrides])
    shape = experiment.dataset.shape
    images = _Random(max(IMAGES, 4 * shape["num_classes"]), shape)
    loader = DataLoader(images, batch_size=experiment.dataset.split("train").needs_batch_size())
    loaders = {"train": loader, "val": loader, "test": loader}
    if host.wanted(experiment):
        (post, net), cpu = _of_openood(experiment, "postprocessor")
        OnHost(lambda: post.setup(net.eval(), loaders, loaders), cpu)()
        return OnHost(lambda: post.inference(net, loader), cpu)
    settings, net = experiment.postprocessor, _network(experiment).eval()
    find_postprocessor(settings, experiment.network.name)
    ours = HostDetector(POSTPROCESSORS[name], settings, experiment.dataset.name)
    ours.setup(net, loaders, loaders)
    return lambda: ours.inference(net, loader)


def sampling(files: str | Path | Iterable[str | Path], name: str = "knn", *overrides: str) -> Callable[[], Any]:
    """Sampling the outlier embeddings of a class with a sampler, from random embeddings around random anchors.

    Args:
        files: config files with a section `dream`.
        name: the sampler.
        overrides: words laid over them.

    Returns:
        A function that samples them.

    Raises:
        InputError: the config is not fit for it, or nobody knows the sampler.
    """
    experiment = load_config(files, ["--dream.outliers.method", name, *overrides])
    settings, classes = experiment.dream, experiment.dataset.num_classes
    sampler, count = get_sampler(settings.outliers), settings.space.per_class
    sampler.check_counts([count] * classes, [str(label) for label in range(classes)])
    given = settings.generator
    width = given.text_dim if isinstance(given, GeneratorTraining) else WIDTH
    device, random = pick_device(experiment.run.device), torch.Generator().manual_seed(0)
    if device.type == "mps":
        device = torch.device("cpu")  # as the outliers stage, since MPS has no float64
    anchors = F.normalize(torch.randn(classes, width, generator=random), dim=1)
    noise = torch.randn(classes, count, width, generator=random) / width**0.5
    z = F.normalize(anchors[:, None] + noise, dim=2).to(device)
    index = Index.of(z.flatten(0, 1), device) if settings.outliers.neighbours == "all" else None
    anchors = anchors.to(device)
    return lambda: sampler.sample(z[0], 0, anchors, settings.space.temperature, index)


def _network(experiment: Experiment) -> nn.Module:
    """The config's network with random weights, on its device."""
    torch.manual_seed(experiment.run.seed)
    settings = experiment.network.model_copy(update={"pretrained": False})
    return get_network(settings, **experiment.dataset.shape).to(pick_device(experiment.run.device))


def _of_openood(experiment: Experiment, kind: str, loaders: Any = None) -> tuple[Any, bool]:
    """What OpenOOD's factory makes, and whether the CPU stands in for CUDA: a trainer, or a postprocessor and a network."""
    cpu = pick_device(experiment.run.device).type != "cuda" or not experiment.run.num_gpus
    whole = host.complete(experiment)
    whole["network"] |= {"pretrained": False, "num_gpus": 0 if cpu else 1}
    with host.registration(cpu):
        networks, made = import_module("openood.networks"), import_module(f"openood.{kind}s")
        config: Any = import_module("openood.utils").Config(whole)
        torch.manual_seed(experiment.run.seed)
        net = networks.get_network(config.network)
        if kind == "trainer":
            return made.get_trainer(net, loaders, None, config), cpu
        return (made.get_postprocessor(config), net), cpu
