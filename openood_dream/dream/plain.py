"""Images of plain prompts: what the generator knows of the classes, before anything is drawn far from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from openood_dream.datasets.images import Transform
from openood_dream.device import pick_device
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.imaginer import Imaginer, image_seed, load_pipeline
from openood_dream.dream.quality import Judge
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.space import above_chance
from openood_dream.networks.features import classify
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors

PER_CLASS, CLASSES = 50, 10  # images of a class, and classes, that show what a generator knows


def make_plain(
    source: Source,
    names: Sequence[str],
    settings: SynthesisSettings,
    cache_dir: str | Path,
    *,
    per_class: int,
    labels: Sequence[int] | None = None,
    anchors: Artifact | None = None,
    judge: Judge | None = None,
    transform: Transform | None = None,
    device: str = "auto",
) -> Artifact:
    """Images of plain prompts, which show what the generator knows.

    Args:
        source: where the pipeline comes from.
        names: the class names in label order.
        settings: how images are drawn.
        cache_dir: folder of all artifacts.
        per_class: images of each class.
        labels: the L classes that are drawn, or None for all.
        anchors: the artifact of the anchors, for a pipeline that was trained here: it knows a name of several tokens by
            its anchor alone.
        judge: who says whether the class of the prompt is seen in the images; None: nobody.
        transform: how the judge sees images.
        device: the config's word for the device.

    Returns:
        The artifact, for `load_plain`; where there is a judge, its manifest has `agreement`, the share of the images, in
        percent, that the judge takes for their prompt's class, and a warning where that is chance.
    """
    shown = list(range(len(names)) if labels is None else labels)
    inputs = {
        "generator": source.identity,
        "class_names": list(names),
        "synthesis": settings.deciding("per_class", "shard_size", "residual", "init", "strength", "pair"),
        "per_class": per_class,
        "labels": shown,
    } | ({} if judge is None else {"judge": judge.identity})

    trained = "train it longer (dream.generator.steps)"
    remedy = f"{trained if anchors else 'check dream.class_names'}, or raise {settings.key('guidance')} ({settings.guidance:g})"

    def make(folder: Path) -> dict[str, Any]:
        imaginer = Imaginer(load_pipeline(source, settings, device), names, settings)
        images = _drawn(imaginer, shown, per_class, None if anchors is None else load_anchors(anchors))
        write_tensors(folder / "plain.safetensors", images=images)
        if judge is None or transform is None:
            return {}
        seen = classify(judge.load(), images.flatten(0, 1), transform, pick_device(device)).argmax(1)
        share = (seen == torch.tensor(shown).repeat_interleave(per_class)).double().mean().item()
        return {"agreement": round(100 * share, 2), "warnings": _doubts(share, len(shown), per_class, remedy)}

    return build(cache_dir, "plain", inputs, make)


def load_plain(artifact: Artifact) -> torch.Tensor:
    """The images (L, per_class, 3, S, S) uint8 of an artifact, by class."""
    return read_tensors(artifact.path / "plain.safetensors", images=5)["images"]


def check_drawing(source: Source, names: Sequence[str], settings: SynthesisSettings, device: str) -> None:
    """Draws two images in two steps and keeps nothing, so that a pipeline that cannot is found before anything long.

    Args:
        source: where the pipeline comes from.
        names: the class names in label order.
        settings: how images are drawn.
        device: the config's word for the device.

    Raises:
        InputError: the pipeline cannot draw them, or they are no numbers.
    """
    few = settings.model_copy(update={"steps": min(2, settings.steps)})
    imaginer = Imaginer(load_pipeline(source, few, device), names, few)
    imaginer(torch.arange(2) % len(names), None, [image_seed(settings.seed, i) for i in range(2)])


def spread(count: int, most: int) -> list[int]:
    """Some of the numbers below a count, evenly spaced, first and last included.

    Args:
        count: of all.
        most: how many are wanted, at most.
    """
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def _drawn(imaginer: Imaginer, shown: Sequence[int], per_class: int, tokens: torch.Tensor | None) -> torch.Tensor:
    """Plain images (L, per_class, 3, S, S) of the classes `shown`, whose tokens are given where they are not words."""
    settings, parts = imaginer.settings, []
    for label in tqdm(shown, desc="imagine: plain prompts", unit="class"):
        seeds = [image_seed(settings.seed, label * per_class + i) for i in range(per_class)]
        for start in range(0, per_class, settings.batch_size):
            some = seeds[start : start + settings.batch_size]
            of = torch.full((len(some),), label)
            parts.append(imaginer(of, None if tokens is None else tokens[of], some))
    images = torch.cat(parts)
    return images.view(len(shown), per_class, *images.shape[1:])


def _doubts(share: float, classes: int, per_class: int, remedy: str) -> list[str]:
    """What is doubtful about a generator in whose plain images a judge sees the prompt's class this often."""
    chance = 1 / classes  # of who always sees the same
    if classes == 1 or above_chance(share, chance, classes * per_class):
        return []
    return [
        f"the generator does not know its classes: in {100 * share:.1f} % of {classes * per_class} images of plain prompts "
        f"the space's classifier sees the prompt's class, chance is {100 * chance:.1f} %, so outliers mean nothing; {remedy}"
    ]
