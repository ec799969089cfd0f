"""What an autoencoder loses of real images, to be added to the images that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from openood_dream.datasets.images import ImageList
from openood_dream.dream.autoencoder import rebuilt
from openood_dream.dream.generator.training import unit_images
from openood_dream.dream.imaginer import Imaginer
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors

RESIDUALS, RESIDUAL_BYTES = 1024, 1 << 28  # how many there are at most


def make_residuals(
    imaginer: Imaginer, source: Source, images: ImageList, settings: SynthesisSettings, cache_dir: str | Path
) -> Artifact:
    """Makes `residuals.safetensors`: of random ID training images, the image less what the autoencoder makes of it.

    `residuals` are (R, 3, size, size) int16, in steps of 1/255. What is drawn lacks such detail: a network learns to call
    its absence OOD, or, worse, ID, and hardly looks at what is in the picture.

    Args:
        imaginer: has the autoencoder.
        source: where its pipeline comes from.
        images: the ID training images, at any size.
        settings: seed and batch size.
        cache_dir: folder of all artifacts.

    Returns:
        The artifact.
    """
    size = imaginer.size
    inputs = {
        "generator": source.identity,
        "train": images.identity,
        "transform": images.transform.test_identity,
        "size": size,
        "seed": settings.seed,
    }

    def make(folder: Path) -> None:
        scaled = images.at_size(size)
        count = max(1, min(RESIDUALS, len(scaled), RESIDUAL_BYTES // (2 * 3 * size**2)))
        picked = torch.randperm(len(scaled), generator=torch.Generator().manual_seed(settings.seed))[:count]
        found = []
        for rows in tqdm(picked.split(settings.batch_size), desc="imagine: residuals", unit="batch", delay=2):
            found.append((lost(imaginer.pipeline, unit_images(scaled, rows)) * 255).round().to(torch.int16))
        write_tensors(folder / "residuals.safetensors", residuals=torch.cat(found))

    return build(cache_dir, "residuals", inputs, make)


def lost(pipeline: DiffusionPipeline, images: torch.Tensor) -> torch.Tensor:
    """What a pipeline's autoencoder loses of images.

    Args:
        pipeline: has the autoencoder.
        images: images (B, 3, S, S) in [-1, 1].

    Returns:
        The images less what it makes of them, each in [0, 1]: (B, 3, S, S) on the CPU, from -1 to 1.
    """
    again = rebuilt(pipeline, images)
    return ((images.to(again) - again) / 2).cpu()


def load_residuals(artifact: Artifact) -> torch.Tensor:
    """The residuals (R, 3, S, S) of an artifact, int16."""
    return read_tensors(artifact.path / "residuals.safetensors", residuals=4)["residuals"]


def residuals_of(residuals: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Picks the residuals that images get.

    Args:
        residuals: all residuals (R, 3, S, S), int16.
        seeds: the noise seeds of B images.

    Returns:
        Residuals (B, 3, S, S), from -1 to 1.
    """
    return residuals[[seed % len(residuals) for seed in seeds]].float() / 255
