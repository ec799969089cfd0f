"""The finished trainings of a benchmark, and what they took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from openood_dream.experiment import Experiment
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.reports.gains import Cost, shown_detector
from openood_dream.reports.records import TRAINED, read_training


class Run(NamedTuple):
    """A finished training.

    Args:
        folder: what it wrote, with a folder of scores for each postprocessor.
        experiment: what was trained.
    """

    folder: Path
    experiment: Experiment

    @property
    def record(self) -> dict[str, Any]:
        """Its train.json."""
        return read_training(self.folder / TRAINED)

    @property
    def scores(self) -> Path:
        """The folder with the scores of the postprocessor that figures show."""
        return self.folder / shown_postprocessor(self.experiment) / "scores"

    def network(self) -> nn.Module:
        """The trained network, on the CPU."""
        dataset = self.experiment.dataset
        net = get_network(self.experiment.network, **dataset.shape)
        load_weights(net, self.folder / "best.ckpt")
        return net


def learned_from_images(run: Run) -> bool:
    """Whether a run's outlier data are the image set of its section dream."""
    experiment = run.experiment
    return experiment.has("dream") and run.record["outlier_data"] == f"imagined ({experiment.dream.outliers.method})"


def costs(runs: Sequence[Run]) -> dict[str, Cost]:
    """What each method took, in seconds: what it imagined, which all its seeds share, and the mean training of a seed."""
    spent: dict[str, list[float]] = {}
    imagining: dict[str, float] = {}
    for run in runs:
        method = run.experiment.method
        spent.setdefault(method, []).append(run.record["seconds"])
        if method not in imagining:
            dream = run.experiment.imagination if learned_from_images(run) else None
            made = (
                [dream.anchors, dream.space, dream.generator, dream.inversion, dream.outliers, dream.images]
                if dream
                else []
            )
            made += [dream.quality] if dream and dream.settings.filter.active else []
            imagining[method] = sum(artifact.manifest["seconds"] for artifact in made if artifact)
    return {method: Cost(imagining[method], sum(seconds) / len(seconds)) for method, seconds in spent.items()}


def training_stages(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per method: the seconds of all its seeds together."""
    spent: dict[str, float] = {}
    for run in runs:
        spent[run.experiment.method] = spent.get(run.experiment.method, 0) + run.record["seconds"]
    return [{"name": f"train: {method}", "seconds": round(total, 1), "hash": ""} for method, total in spent.items()]


def first_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """The run of each method with its first seed."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.experiment.method, run)
    return first


def shown_postprocessor(experiment: Experiment) -> str:
    """The postprocessor that figures show for a method: `ebo` where it has that, else its first."""
    return shown_detector(experiment.benchmark.postprocessors)
