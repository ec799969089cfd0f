"""Who runs a config: OpenOOD's pipelines, or ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from openood_dream.errors import check_name
from openood_dream.experiment import Experiment, load_config
from openood_dream.openood import host
from openood_dream.pipelines.benchmark import benchmark
from openood_dream.pipelines.test import test
from openood_dream.pipelines.train import train
from openood_dream.trainers.known import TRAINERS

Pipeline = Callable[[Experiment], Path]

# OpenOOD's pipelines that run without it
STANDALONE: dict[str, Pipeline] = {"train": train, "train_oe": train, "test_ood": test}


def run(config_files: Sequence[str], overrides: Sequence[str] = ()) -> Path:
    """Runs the pipeline that a config names, OpenOOD's included.

    Args:
        config_files: config files, merged left to right.
        overrides: the words `--key value` laid over them.

    Returns:
        The folder it wrote, or a benchmark's report.

    Raises:
        InputError: the config or its data are not fit for it.
    """
    experiment = load_config(config_files, overrides)
    name = experiment.pipeline.name
    if name == "benchmark":
        return benchmark(config_files, overrides)
    if host.wanted(experiment):
        return _by_openood(experiment)
    check_name(experiment.where("pipeline.name"), name, [*STANDALONE, "benchmark"])
    return STANDALONE[str(name)](experiment)


def hosted(experiment: Experiment, standalone: Pipeline) -> Path:
    """Runs `train` or `test`, or OpenOOD's pipeline of that kind where `backend` means OpenOOD.

    A benchmark's config names the pipeline `benchmark`; the part of it that is asked for here is then the pipeline.

    Args:
        experiment: the config.
        standalone: pipelines.train.train or pipelines.test.test.

    Returns:
        The run's folder.

    Raises:
        InputError: `pipeline.name` is not of that kind, where it matters, or the config is not fit for it.
    """
    if not host.wanted(experiment):
        return standalone(experiment)
    kind, name = [key for key, ours in STANDALONE.items() if ours is standalone], experiment.pipeline.name
    if name == "benchmark":
        experiment = experiment.changed({"pipeline.name": _part(experiment, standalone)})
    elif name not in kind:
        raise experiment.error("pipeline.name", f"expected {' or '.join(kind)}, got {name!r}")
    return _by_openood(experiment)


def _part(experiment: Experiment, standalone: Pipeline) -> str:
    """OpenOOD's pipeline that does a benchmark's training or its test."""
    if standalone is test:
        return "test_ood"
    trainer = TRAINERS.get(experiment.trainer.name)
    return "train_oe" if trainer and trainer.auxiliary else "train"


def _by_openood(experiment: Experiment) -> Path:
    """Runs OpenOOD's pipeline; InputError for what it cannot have."""
    if experiment.has("dataset") and experiment.dataset.channels != 3:
        raise experiment.error(
            "dataset.channels", "OpenOOD's images have 3 channels; for grey ones, --backend standalone"
        )
    return host.run(experiment)
