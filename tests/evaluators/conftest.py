"""A network after a few steps on digits, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Tiny

from openood_dream.evaluators.evaluate import evaluate
from openood_dream.evaluators.passes import Passes
from openood_dream.experiment import Experiment
from openood_dream.networks.factory import get_network

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def net(tiny: Tiny) -> torch.nn.Module:
    """The network, so trained that its scores mean something."""
    torch.manual_seed(0)
    experiment = tiny.config()
    net = get_network(experiment.network, image_size=16)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for batch in experiment.data.loader("dataset", "train", augment=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch["data"]), batch["label"]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def scored(tiny: Tiny) -> Callable[..., Experiment]:
    """The tiny config with a postprocessor, overrides and further files."""

    def config(name: str, *overrides: str, layers: tuple[str, ...] = ()) -> Experiment:
        return tiny.config(*overrides, layers=[f"postprocessors/{name}.yml", *layers])

    return config


@pytest.fixture(scope="session")
def passes_of(net: torch.nn.Module) -> Callable[..., Passes]:
    """The network's passes over the data of a config; `kept` are checkpoint and cache_dir."""

    def make(experiment: Experiment, of: torch.nn.Module = net, **kept: Path) -> Passes:
        return Passes(of, experiment.data, CPU, network={"name": experiment.network.name, "args": None}, **kept)

    return make


@pytest.fixture(scope="session")
def run(passes_of: Callable[..., Passes]) -> Callable[..., Any]:
    """Evaluates the network, or the passes that are given, as a config says."""

    def evaluated(experiment: Experiment, out: Path, passes: Passes | None = None) -> Any:
        scheme = experiment.evaluator.ood_scheme
        passes = passes or passes_of(experiment)
        return evaluate(passes, experiment.postprocessor, out, config=experiment.to_dict(), scheme=scheme)

    return evaluated


@pytest.fixture(scope="session")
def folder(tiny: Tiny, scored: Any, passes_of: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one evaluation with three postprocessors, sharing their passes."""
    root = tmp_path_factory.mktemp("evaluated")
    passes = passes_of(tiny.config())
    for name in ("msp", "ebo", "knn"):
        run(scored(name), root / name, passes)
    return root
