"""What the generative networks of a benchmark draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from openood_dream.device import pick_device
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.settings import GenerativeNetwork
from openood_dream.reports import plots
from openood_dream.reports.benchmarked import Run
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.files import sha256
from openood_dream.store.tensors import read_tensors, write_tensors

COLUMNS = 12  # images of each network


def sampled(first: Mapping[str, Run]) -> tuple[dict[str, bytes], list[str]]:
    """Images drawn from each generative network, its high-frequency channel below, and its bits per dimension.

    Args:
        first: a run of each method.

    Returns:
        The figure `samples`, as PNG, where there is such a network, and a sentence about each.
    """
    rows: list[plots.Row] = []
    notes = []
    for method, run in first.items():
        network = run.experiment.network
        if not isinstance(network, GenerativeNetwork):
            continue
        images = read_tensors(draw(run, network).path / "samples.safetensors", images=4)["images"]
        colours, high = images[:, : network.channels], images[:, network.channels :]
        for label, part in ((method, colours), (f"{method}: high frequencies", high)):
            if part.shape[1]:
                rows.append(plots.Row(label, list(part.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())))
        bits = -math.log2(max(row["val_acc"] for row in run.record["epochs"]) / 100)
        notes.append(
            f"{method}, seed {run.experiment.run.seed}: {bits:.2f} bits per dimension of the validation images, "
            f"{bits * images.shape[1]:.1f} per pixel of {images.shape[1]} channels."
        )
    return {"samples": plots.image_grid(rows, "Drawn from the generative networks")} if rows else {}, notes


def draw(run: Run, network: GenerativeNetwork) -> Artifact:
    """Draws images from a run's generative network.

    Args:
        run: the finished training.
        network: what was trained.

    Returns:
        `samples.safetensors`, with `images` (COLUMNS, channels, S, S) uint8.
    """

    def make(folder: Path) -> None:
        net = Generative(network)
        load_weights(net, run.folder / "best.ckpt")
        net.to(pick_device(run.experiment.run.device)).eval()
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(0)
            images = net.model.sample(COLUMNS)
        write_tensors(folder / "samples.safetensors", images=images.cpu())

    return build(run.folder, "samples", {"weights": sha256(run.folder / "best.ckpt"), "count": COLUMNS}, make)
