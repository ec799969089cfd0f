"""Energies of ID, auxiliary and OOD validation images while the methods of a benchmark learn.

    python benchmarks/energies.py --config benchmarks/cifar10_half.yml --methods oe,dream_ood

Trains the methods with their first seed, as `openood-dream benchmark` does and where it does, which then finds these runs
finished. Looks at the network before the first step and after every so many: the logsumexp of its logits for ID
validation images, for the OOD validation images (ood_dataset.val), and for the images that the method learns from. Leaves
energies.json in each run, and energies.json and energies.png in the benchmark's root.
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
from openood_dream.evaluators.metrics import compute_metrics
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines import train as training
from openood_dream.pipelines.benchmark import Plan
from openood_dream.reports.probe import outlier_rows
from openood_dream.reports.style import BLUE, GREEN, RED, WIDTH, png, styled, write_title
from openood_dream.store.files import write_json
from openood_dream.trainers.known import TRAINERS

MOST = 1000  # images of a set that are looked at
BATCH = 250
ID, OOD, OWN = "ID, validation", "near-OOD, validation", "outliers learned from"
COLOURS = {ID: BLUE, OOD: RED, OWN: GREEN}


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
                found[name]["auroc"] = 100 * float(
                    compute_metrics(torch.cat([known, energy]).numpy(), labels, labels)[1]
                )
        self.rows.append({"step": self.steps, "sets": found})


def normalised(images: ImageList) -> torch.Tensor:
    """At most MOST images of a list as networks see them; of its outliers alone where some are labelled with a class."""
    return images.transform.normalize(images.pixels(outlier_rows(images, MOST)))


def image_sets(experiment: Experiment) -> dict[str, torch.Tensor]:
    """ID and OOD validation images, and what a method learns from besides ID images."""
    data = experiment.data
    found = {ID: data.images("dataset", "val"), OOD: data.images("ood_dataset", "val")}
    outliers = training.outlier_data(experiment, TRAINERS[experiment.trainer.name]).loader
    if outliers is not None:
        found[OWN] = outliers.dataset
    return {name: normalised(images) for name, images in found.items()}


def watched(experiment: Experiment, every: int) -> list[dict[str, Any]]:
    """The rows of the training of an experiment; those that lie in its folder, where it is finished.

    Args:
        experiment: what is trained.
        every: how many steps lie between two looks.

    Raises:
        SystemExit: it was trained without being watched.
    """
    out = experiment.run.folder
    kept = out / "energies.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    if (out / "train.json").exists():
        raise SystemExit(f"{out}: finished, without energies.json; delete the folder, or watch another method")
    (out / "training.ckpt").unlink(missing_ok=True)  # what was not watched from the start is begun anew
    watch = Watch(image_sets(experiment), every)
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
            steps = [row["step"] for row in rows]
            for name in rows[0]["sets"]:
                colour = COLOURS[name]
                low, middle, high = ([row["sets"][name][key] for row in rows] for key in ("p10", "p50", "p90"))
                ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
                ax.plot(steps, middle, color=colour, linewidth=2, label=name)
            ax.set(title=method, xlabel="steps")
        most = max(axes, key=lambda ax: len(ax.lines))
        fig.legend(*most.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return png(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, help="the benchmark's files")
    parser.add_argument("--methods", required=True, help="labels, separated by commas")
    parser.add_argument("--every", type=int, default=20, help="steps between two looks")
    given = parser.parse_args()
    plan = Plan(given.config, [], load_config(given.config, []))
    methods = given.methods.split(",")
    experiments = {name: plan.chosen([name], 1)[0].experiment for name in methods}
    for experiment in experiments.values():
        experiment.data.ensure()
    found = {name: watched(experiment, given.every) for name, experiment in experiments.items()}
    root = Path(next(iter(experiments.values())).run.root or "results")
    write_json(root / "energies.json", found)
    (root / "energies.png").write_bytes(figure(found))
    for name, rows in found.items():
        print(name, {key: round(value["auroc"], 1) for key, value in rows[-1]["sets"].items() if key != ID})


if __name__ == "__main__":
    main()
