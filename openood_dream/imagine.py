"""Phase 2b: embeddings to images. Each sample's embedding takes the place of its class token in the prompt.

Works with any Stable-Diffusion-format pipeline, unmodified: it only gets prompt embeddings and noise of our making.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from packaging.version import Version
from PIL import Image
from tqdm import tqdm

from openood_dream import __version__, data, generator, store
from openood_dream import anchors as anchors_stage
from openood_dream import outliers as outliers_stage
from openood_dream.anchors import Source
from openood_dream.config import Config, InputError, SynthesisSettings, origin, settings
from openood_dream.networks import pick_device
from openood_dream.prompts import Prompt, conditioning

# diffusers 0.41, the newest for Python 3.10, knows the old name alone; later ones warn of it
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
SCHEDULERS = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def load_pipeline(source: Source, config: Config) -> diffusers.DiffusionPipeline:
    """The pipeline of a source, on the device, with the scheduler of `dream.synthesis`. The safety checker is left out:
    it blackens images that it dislikes, and outliers are what we are after."""
    synthesis: SynthesisSettings = settings(config, "dream").synthesis
    if synthesis.scheduler not in SCHEDULERS:
        near = difflib.get_close_matches(synthesis.scheduler, SCHEDULERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        where = origin(config, "dream.synthesis.scheduler") or "config"
        known = ", ".join(SCHEDULERS)
        raise InputError(
            f"{where}: dream.synthesis.scheduler: unknown {synthesis.scheduler!r}; expected one of {known}{hint}"
        )
    device = pick_device(config.device)
    dtype = synthesis.dtype
    if dtype == "auto":
        dtype = "float16" if device.type in ("cuda", "mps") else "float32"
    pipeline = source.load(
        diffusers.StableDiffusionPipeline,
        safety_checker=None,
        requires_safety_checker=False,
        **{DTYPE: getattr(torch, dtype)},
    )
    name, options = SCHEDULERS[synthesis.scheduler]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@dataclass
class Imaginer:
    """A pipeline and the prompts of every class, ready to draw images of embeddings."""

    pipeline: diffusers.StableDiffusionPipeline
    prompts: list[Prompt]
    negative: Prompt
    synthesis: SynthesisSettings

    @classmethod
    def of(
        cls, pipeline: diffusers.StableDiffusionPipeline, names: list[str], synthesis: SynthesisSettings
    ) -> Imaginer:
        prompts = [Prompt.of(pipeline.tokenizer, synthesis.prompt, name) for name in names]
        return cls(pipeline, prompts, Prompt.plain(pipeline.tokenizer, synthesis.negative_prompt), synthesis)

    @torch.inference_mode()
    def __call__(self, labels: torch.Tensor, tokens: torch.Tensor | None, seeds: list[int]) -> torch.Tensor:
        """Images (B, 3, S, S) as uint8 on the CPU, for class `labels` (B,), class tokens (B, m) and a noise seed each.

        `tokens` None draws the plain prompts. An image depends on its label, token and seed, not on its batch.
        """
        pipe, options = self.pipeline, self.synthesis
        encoder = pipe.text_encoder
        size = options.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
        shape = (pipe.unet.config.in_channels, size // pipe.vae_scale_factor, size // pipe.vae_scale_factor)
        # noise is drawn on the CPU, image by image, so that it is the same on every device and in every batch
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        guided = options.guidance > 1
        negative = conditioning(encoder, [self.negative], torch.zeros(1, dtype=torch.long), None) if guided else None
        images = pipe(
            prompt_embeds=conditioning(encoder, self.prompts, labels, tokens),
            negative_prompt_embeds=negative.expand(len(labels), -1, -1) if guided else None,
            latents=noise.to(pipe.device, encoder.dtype),
            height=size,
            width=size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            output_type="pt",
        ).images.float()
        save = options.save_size or size
        if save != size:
            images = F.interpolate(
                images, size=(save, save), mode="bilinear", antialias=save < size, align_corners=False
            )
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def folder_names(names: list[str]) -> list[str]:
    """A folder name for each class: letters, digits, dots and dashes alone, since image lists are split at spaces."""
    folders = [re.sub(r"[^\w.-]+", "_", name).strip("._") or "class" for name in names]
    return [f"{folder}_{i}" if folders.count(folder) > 1 else folder for i, folder in enumerate(folders)]


def choose(outliers: pd.DataFrame, per_class: int, classes: int, seed: int) -> np.ndarray:
    """Rows of the outlier table for images 0, 1, ...: classes take turns, each class's embeddings in random order.

    Where a class has fewer embeddings than images they are used again, with other noise.
    """
    columns = []
    for label in range(classes):
        rows = np.flatnonzero(outliers["class"].to_numpy() == label)
        if not len(rows):
            raise InputError(
                f"dream.outliers: class {label} has no outlier embedding; change dream.outliers so that it gets some"
            )
        order = np.random.default_rng([seed, label]).permutation(rows)
        columns.append(np.resize(order, per_class))
    return np.stack(columns, axis=1).reshape(-1)


def image_seed(seed: int, number: int) -> int:
    """The noise seed of an image of a set."""
    return int.from_bytes(sha256(f"{seed}/{number}".encode()).digest()[:6], "big")


def png(image: np.ndarray) -> bytes:
    """An image (S, S, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def run(config: Config) -> store.Artifact:
    """The imagine stage: `<class>/<id>.png`, `imglist.txt` (label -1 for outliers, the class for inliers) and
    `images.parquet` with a row per image."""
    dream, names = settings(config, "dream"), data.class_names(config)
    synthesis = dream.synthesis
    upstream = outliers_stage.run(config)
    source = generator.run(config)
    inputs = {
        "generator": source.identity,
        "outliers": upstream.hash,
        "class_names": names,
        "synthesis": synthesis.model_dump(),
    }

    def make(folder: Path) -> dict[str, Any]:
        wanted = store.shards(synthesis.per_class * len(names), synthesis.shard_size)
        todo = store.missing_shards(folder, wanted)
        if todo:
            work = Shards(config, source, upstream, folder)
            total = sum(len(wanted[number]) for number in todo)
            with tqdm(total=total, desc="imagine: drawing images", unit="image") as bar, ThreadPoolExecutor(4) as pool:
                for number in todo:
                    work.draw(number, wanted[number], pool, bar)
        table = store.join_shards(folder, len(wanted))
        return {"images": len(table), "generator": source.path}

    return store.build(dream.cache_dir, "images", inputs, make)


class Shards:
    """Draws the shards of an image set. A shard's content depends on the config and its number alone."""

    def __init__(self, config: Config, source: Source, outliers: store.Artifact, folder: Path) -> None:
        dream = settings(config, "dream")
        self.folder, self.synthesis, self.source = folder, dream.synthesis, source
        self.names = data.class_names(config)
        self.folders = folder_names(self.names)
        self.table, self.embeddings = outliers_stage.load(outliers)
        self.rows = choose(self.table, self.synthesis.per_class, len(self.names), self.synthesis.seed)
        self.keeps_class = dream.outliers.method == "inlier"
        pipeline = load_pipeline(source, config)
        check_anchors(pipeline, anchors_stage.load(anchors_stage.run(config)))
        self.imaginer = Imaginer.of(pipeline, self.names, self.synthesis)

    def draw(self, number: int, images: range, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        """Draws and writes one shard; its table comes last, when all its images are on disk."""
        written = []
        for batch in self.batches(images):
            rows = self.rows[batch]
            labels = torch.from_numpy(self.table["class"].to_numpy()[rows].astype(np.int64))
            seeds = [image_seed(self.synthesis.seed, i) for i in batch]
            pixels = self.imaginer(labels, self.embeddings[torch.from_numpy(rows)], seeds).permute(0, 2, 3, 1).numpy()
            for i, row, label, seed, image in zip(batch, rows, labels.tolist(), seeds, pixels, strict=True):
                written.append(pool.submit(self.write, i, int(row), label, seed, image))
            bar.update(len(batch))
        store.write_table(store.shard_table(self.folder, number), pd.DataFrame([row.result() for row in written]))

    def batches(self, images: range) -> Iterator[range]:
        for start in range(images.start, images.stop, self.synthesis.batch_size):
            yield range(start, min(start + self.synthesis.batch_size, images.stop))

    def write(self, number: int, row: int, label: int, seed: int, image: np.ndarray) -> dict[str, Any]:
        """Writes one image and returns its row of the table."""
        file = Path(self.folders[label]) / f"{number:07d}.png"
        content = png(image)
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return {
            "file": file.as_posix(),
            "label": label if self.keeps_class else -1,
            "sha256": sha256(content).hexdigest(),
            "class": label,
            "embedding": row,
            "seed": seed,
            "prompt": self.synthesis.prompt.format(self.names[label]),
            "distance": float(self.table["distance"].iloc[row]),
            "generator": self.source.path,
            "code": __version__,
        }


def check_anchors(pipeline: diffusers.StableDiffusionPipeline, anchors: torch.Tensor) -> None:
    """Raises InputError where the embeddings are not of the text encoder's width."""
    width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    if anchors.shape[1] != width:
        raise InputError(
            f"dream.generator: takes token embeddings of {width} numbers, the anchors have {anchors.shape[1]}"
        )


def plain(config: Config, per_class: int) -> store.Artifact:
    """`plain.safetensors`: `images` (C, per_class, 3, S, S) uint8 of the plain prompts, which show what the generator knows."""
    dream, names = settings(config, "dream"), data.class_names(config)
    source = generator.run(config)
    inputs = {
        "generator": source.identity,
        "class_names": names,
        "synthesis": dream.synthesis.model_dump(),
        "per_class": per_class,
    }

    def make(folder: Path) -> None:
        imaginer = Imaginer.of(load_pipeline(source, config), names, dream.synthesis)
        rows = []
        for label in tqdm(range(len(names)), desc="imagine: plain prompts", unit="class"):
            seeds = [image_seed(dream.synthesis.seed, label * per_class + i) for i in range(per_class)]
            parts = [seeds[i : i + dream.synthesis.batch_size] for i in range(0, per_class, dream.synthesis.batch_size)]
            rows.append(torch.cat([imaginer(torch.full((len(part),), label), None, part) for part in parts]))
        store.write_tensors(folder / "plain.safetensors", images=torch.stack(rows))

    return store.build(dream.cache_dir, "plain", inputs, make)
