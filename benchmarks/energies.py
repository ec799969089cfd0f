"""Energies of ID, auxiliary and OOD validation images while the methods of a benchmark learn.

    python benchmarks/energies.py --config benchmarks/cifar10_half.yml --methods oe,dream_ood

Trains each method again with its first seed, in a folder of its own below the benchmark's root, and looks at the network
before the first step and after every so many: the logsumexp of its logits for ID validation images, for the OOD validation
images (ood_dataset.val), and for the images that each of the methods learns from. Writes energies.json and energies.png.
What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from openood_dream.datasets.images import ImageList
from openood_dream.dream.plain import spread
from openood_dream.evaluators.metrics import compute_metrics
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines import train as training
from openood_dream.pipelines.benchmark import Plan
from openood_dream.reports.benchmarked import Run
from openood_dream.reports.probe import auxiliary_sets
from openood_dream.reports.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, WIDTH, png, styled, write_title
from openood_dream.store.files import write_json

MOST = 1000  # images of a set that are looked at
BATCH = 250
ID, OOD = "ID, validation", "near-OOD, validation"
COLOURS = {ID: BLUE, OOD: RED}
OTHERS = (GREEN, ORANGE, PURPLE, SKY)


class Watch:
    """Writes down energies every so many steps of a training.

    Args:
        sets: normalised images (N, 3, S, S) by what they are.
        every: how many steps lie between two looks.
    """

    def __init__(self, sets: Mapping[str, torch.Tensor], every: int) -> None:
        self.sets, self.every, self.steps, self.rows = sets, every, 0, list[dict[str, Any]]()
        self.net: nn.Module | None = None

    def start(self, net: nn.Module) -> nn.Module:
        """Looks at a network before its first step."""
        self.net, self.steps = net, 0
        self.look()
        return net

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Counts a step of the optimiser that trains the network."""
        own = next(self.net.parameters()) if self.net else None
        if any(own is parameter for group in optimizer.param_groups for parameter in group["params"]):
            self.steps += 1
            if self.steps % self.every == 0:
                self.look()

    @torch.no_grad()
    def look(self) -> None:
        assert self.net is not None
        was = self.net.training
        self.net.eval()
        energies = {
            name: torch.cat([self.net(part).logsumexp(1) for part in images.split(BATCH)]).float()
            for name, images in self.sets.items()
        }
        self.net.train(was)
        known = energies[ID]
        found = {}
        for name, energy in energies.items():
            low, middle, high = energy.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
            found[name] = {"p10": low, "p50": middle, "p90": high}
            if name != ID:
                labels = torch.cat([torch.zeros(len(known)), -torch.ones(len(energy))]).long().numpy()
                found[name]["auroc"] = 100 * compute_metrics(torch.cat([known, energy]).numpy(), labels, labels)[1]
        self.rows.append({"step": self.steps, "sets": found})


def normalised(images: ImageList) -> torch.Tensor:
    """At most MOST images of a list as networks see them; of its outliers alone where some are labelled with a class."""
    rows = (images.labels < 0).nonzero()[:, 0]
    rows = rows if len(rows) else torch.arange(len(images))
    return images.transform.normalize(images.pixels(rows[torch.tensor(spread(len(rows), MOST))]))


def image_sets(experiments: Mapping[str, Experiment]) -> dict[str, torch.Tensor]:
    """ID and OOD validation images, and what each method learns from besides ID images."""
    data = next(iter(experiments.values())).data
    found = {ID: data.images("dataset", "val"), OOD: data.images("ood_dataset", "val")}
    finished = {name: Run(one.run.folder, one) for name, one in experiments.items()}
    found |= {f"images of {name}": images for name, (_, images) in auxiliary_sets(finished).items()}
    return {name: normalised(images) for name, images in found.items()}


def watched(experiment: Experiment, out: Path, sets: Mapping[str, torch.Tensor], every: int) -> list[dict[str, Any]]:
    """The rows of a training of an experiment in the folder `out`; read there where it is finished.

    Args:
        experiment: what is trained.
        out: the folder.
        sets: whose energies are looked at.
        every: how many steps lie between two looks.
    """
    kept = out / "energies.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    watch = Watch(sets, every)
    new = training.new_network
    with mock.patch.object(training, "new_network", lambda of: watch.start(new(of))):
        handle = register_optimizer_step_post_hook(watch)
        try:
            training.train(experiment)
        finally:
            handle.remove()
    write_json(kept, watch.rows)
    return watch.rows


def figure(found: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """A panel for each method: the median of each set's energies over the steps, with the middle four fifths."""
    with styled():
        fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        write_title(fig, "Energies (logsumexp of the logits) while a network learns: medians, and 80 % of the images")
        axes = fig.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for ax, (method, rows) in zip(axes, found.items()):
            steps, others = [row["step"] for row in rows], iter(OTHERS)
            for name in rows[0]["sets"]:
                colour = COLOURS.get(name) or next(others)
                low, middle, high = ([row["sets"][name][key] for row in rows] for key in ("p10", "p50", "p90"))
                ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
                ax.plot(steps, middle, color=colour, linewidth=2, label=name)
            ax.set(title=method, xlabel="steps")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return png(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, help="the benchmark's files")
    parser.add_argument("--methods", required=True, help="labels, separated by commas; their runs have to be finished")
    parser.add_argument("--every", type=int, default=20, help="steps between two looks")
    given = parser.parse_args()
    plan = Plan(given.config, [], load_config(given.config, []))
    methods = given.methods.split(",")
    experiments = {name: plan.chosen([name], 1)[0].experiment for name in methods}
    root = Path(next(iter(experiments.values())).run.root or "results")
    sets, found = image_sets(experiments), {}
    for name in methods:
        word = ["--exp_name", f"energies/{name}"]
        again = Plan(given.config, word, load_config(given.config, word)).chosen([name], 1)[0].experiment
        found[name] = watched(again, again.run.folder, sets, given.every)
    write_json(root / "energies.json", found)
    (root / "energies.png").write_bytes(figure(found))
    for name, rows in found.items():
        print(name, {key: round(value["auroc"], 1) for key, value in rows[-1]["sets"].items() if key != ID})


if __name__ == "__main__":
    main()
