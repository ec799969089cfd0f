"""Images along the line from a class's anchor to its farthest outlier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.images import set_inputs
from openood_dream.dream.imaginer import Imaginer, check_anchors, image_seed, load_pipeline
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors

STEPS = 9  # embeddings along a line, both ends included


def between(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    """Vectors on a straight line, stretched to lengths that change evenly.

    Args:
        start: one end (m,).
        end: the other end (m,).
        steps: how many vectors, both ends included.

    Returns:
        Vectors (steps, m).
    """
    share = torch.linspace(0, 1, steps)[:, None]
    lengths = torch.lerp(start.norm(), end.norm(), share)
    line = F.normalize(torch.lerp(start, end, share), dim=1) * lengths
    line[0], line[-1] = start, end  # to the last bit
    return line


def make_lines(
    source: Source,
    outliers: Artifact,
    anchors: Artifact,
    names: Sequence[str],
    settings: SynthesisSettings,
    cache_dir: str | Path,
    *,
    labels: Sequence[int],
    noises: int,
    trained: bool,
    device: str = "auto",
) -> Artifact:
    """Draws classes from the plain prompt along the line from their anchor to their farthest outlier.

    The steps between the ends have their length, as all embeddings that are drawn, and the images of a row one noise.

    Args:
        source: where the pipeline comes from.
        outliers: the artifact of the outlier embeddings.
        anchors: the artifact of the anchors.
        names: the class names in label order.
        settings: how images are drawn.
        cache_dir: folder of all artifacts.
        labels: the L classes that are drawn.
        noises: rows of images of each class, each in a noise of its own.
        trained: whether the pipeline was trained here: it knows a name of several tokens by its anchor alone.
        device: the config's word for the device.

    Returns:
        The artifact, for `load_lines`.

    Raises:
        InputError: the embeddings do not fit the pipeline, or an image does not fit into memory.
    """
    inputs = {
        **set_inputs(source, outliers, names, settings, "per_class", "shard_size", "residual", "init"),
        "labels": list(labels),
        "noises": noises,
        "steps": STEPS,
    }

    def make(folder: Path) -> None:
        imaginer = Imaginer(load_pipeline(source, settings, device), names, settings)
        (table, embeddings), starts = load_outliers(outliers), load_anchors(anchors)
        check_anchors(imaginer, starts)
        distances = [table["distance"].where(table["class"] == label, -1.0).to_numpy() for label in labels]
        ends = embeddings[torch.tensor([int(distance.argmax()) for distance in distances])]
        tokens = [between(starts[label], end, STEPS) for label, end in zip(labels, ends, strict=True)]
        images = []
        with tqdm(total=len(labels) * noises * (1 + STEPS), desc="plot: drawing lines", unit="image") as bar:
            for label, line in zip(labels, tokens, strict=True):
                plain = starts[[label]] if trained else None
                for noise in range(noises):
                    images.append(_row(imaginer, label, plain, line, image_seed(settings.seed, noise)))
                    bar.update(1 + STEPS)
        shape = (len(labels), noises, *images[0].shape)
        write_tensors(folder / "line.safetensors", tokens=torch.stack(tokens), images=torch.stack(images).view(shape))

    return build(cache_dir, "line", inputs, make)


def _row(imaginer: Imaginer, label: int, plain: torch.Tensor | None, line: torch.Tensor, seed: int) -> torch.Tensor:
    """Images (1 + STEPS, 3, S, S) of the plain prompt, or the token `plain` (1, m), and of the tokens of a line."""
    images = [imaginer(torch.tensor([label]), plain, [seed])]
    for part in line.split(imaginer.settings.batch_size):
        images.append(imaginer(torch.full((len(part),), label), part, [seed] * len(part)))
    return torch.cat(images)


def load_lines(artifact: Artifact) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (L, STEPS, m) and images (L, noises, 1 + STEPS, 3, S, S) uint8 of an artifact."""
    found = read_tensors(artifact.path / "line.safetensors", tokens=3, images=6)
    return found["tokens"], found["images"]
