"""Phase 2b: embeddings to images. Each sample's embedding takes the place of its class token in the prompt.

Works with any Stable-Diffusion-format pipeline, unmodified: it only gets prompt embeddings and noise of our making.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
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
from openood_dream import space as space_stage
from openood_dream.anchors import Source
from openood_dream.config import Config, GeneratorTraining, InputError, SynthesisSettings, settings
from openood_dream.networks import pick_device
from openood_dream.prompts import Prompt, encode

# diffusers 0.41, the newest for Python 3.10, knows the old name alone; later ones warn of it
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
SCHEDULERS = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
OWN = "own"  # the scheduler that the pipeline was saved with, which few-step distillations need

Pipeline = diffusers.StableDiffusionPipeline | diffusers.StableDiffusionXLPipeline


def load_pipeline(source: Source, config: Config) -> Pipeline:
    """The pipeline of a source, on the device, with the scheduler of `dream.synthesis`. The safety checker is left out:
    it blackens images that it dislikes, and outliers are what we are after."""
    synthesis: SynthesisSettings = settings(config, "dream").synthesis
    device = pick_device(config.device)
    dtype = synthesis.dtype
    if dtype == "auto":
        dtype = "float16" if device.type in ("cuda", "mps") else "float32"
    loader, without = diffusers.StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}
    if source.index.get("text_encoder_2"):
        loader, without = diffusers.StableDiffusionXLPipeline, {"add_watermarker": False}
    pipeline = source.load(loader, **without, **{DTYPE: getattr(torch, dtype)})
    if synthesis.scheduler != OWN:
        name, options = SCHEDULERS[synthesis.scheduler]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    if synthesis.slicing:
        pipeline.enable_attention_slicing()
        pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if synthesis.compile:
        pipeline.unet.compile()
    return pipeline


class Imaginer:
    """A pipeline and the prompts of every class, ready to draw images of embeddings.

    `texts` are the pipeline's tokenizers and text encoders: one pair, or two for Stable Diffusion XL, whose embeddings
    are then those of both, one after the other.
    """

    def __init__(self, pipeline: Pipeline, names: list[str], synthesis: SynthesisSettings) -> None:
        self.pipeline, self.synthesis = pipeline, synthesis
        self.texts = [(pipeline.tokenizer, pipeline.text_encoder)]
        if isinstance(pipeline, diffusers.StableDiffusionXLPipeline):
            self.texts.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
        self.widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in self.texts]
        template = synthesis.prompt
        self.prompts = [[Prompt.of(tokenizer, template, name) for name in names] for tokenizer, _ in self.texts]
        self.words = [[Prompt.plain(tokenizer, template.format(name)) for name in names] for tokenizer, _ in self.texts]
        # distilled pipelines take the guidance scale as an input, and have no unconditional half
        self.guided = synthesis.guidance > 1 and pipeline.unet.config.time_cond_proj_dim is None
        self.negative = self._negative() if self.guided else {}

    @torch.inference_mode()
    def _negative(self) -> dict[str, torch.Tensor]:
        """The encoding (1, ...) of the negative prompt, which is the same for every image of a run."""
        text = self.synthesis.negative_prompt
        prompts = [[Prompt.plain(tokenizer, text, "negative_prompt")] for tokenizer, _ in self.texts]
        encoded = self._encoded(prompts, torch.zeros(1, dtype=torch.long), None)
        if not text and self.pipeline.config.get("force_zeros_for_empty_prompt"):
            encoded = {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
        return {f"negative_{name}": tensor for name, tensor in encoded.items()}

    def _encoded(
        self, prompts: list[list[Prompt]], labels: torch.Tensor, tokens: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What the pipeline takes instead of prompts, for class `labels` (B,) and class tokens (B, m), if any."""
        parts = [None] * len(self.texts) if tokens is None else tokens.split(self.widths, dim=1)
        outputs = [
            encode(encoder, own, labels, part, output_hidden_states=len(self.texts) > 1)
            for (_, encoder), own, part in zip(self.texts, prompts, parts, strict=True)
        ]
        if len(outputs) == 1:
            return {"prompt_embeds": outputs[0][0]}
        # Stable Diffusion XL reads both encoders' last layer but one, and the second one's pooled output
        return {
            "prompt_embeds": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
            "pooled_prompt_embeds": outputs[1][0],
        }

    @property
    def size(self) -> int:
        """Pixels a side that are generated."""
        return self.synthesis.size or self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @torch.inference_mode()
    def _draw(self, labels: torch.Tensor, tokens: torch.Tensor | None, seeds: list[int], kind: str) -> torch.Tensor:
        pipe, options, size = self.pipeline, self.synthesis, self.size
        shape = (pipe.unet.config.in_channels, size // pipe.vae_scale_factor, size // pipe.vae_scale_factor)
        # noise is drawn on the CPU, image by image, so that it is the same on every device and in every batch; some
        # schedulers draw more of it, from the same generators
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        text = self._encoded(self.words if tokens is None else self.prompts, labels, tokens)
        try:
            return pipe(
                **text,
                **{name: tensor.expand(len(labels), *tensor.shape[1:]) for name, tensor in self.negative.items()},
                latents=noise.to(pipe.device, text["prompt_embeds"].dtype),
                generator=generators,
                height=size,
                width=size,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                output_type=kind,
            ).images.float()
        except torch.OutOfMemoryError:
            raise InputError(
                f"dream.synthesis.batch_size: {len(labels)} images of {size} pixels do not fit into the memory of "
                f"{pipe.device}; lower it, or set dream.synthesis.slicing"
            ) from None

    def latents(self, labels: torch.Tensor, tokens: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """What the images of `__call__` are decoded from: latents (B, c, h, w), float32 on the CPU."""
        return self._draw(labels, tokens, seeds, "latent").cpu()

    def __call__(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: list[int],
        residuals: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images (B, 3, S, S) as uint8 on the CPU, for class `labels` (B,), class tokens (B, m) and a noise seed each.

        `tokens` None draws the plain prompts, class names in full. `residuals` (B, 3, size, size), from -1 to 1, are added
        to what is generated. An image depends on its label, token, seed and residual, not on its batch. Raises InputError
        where a batch does not fit into memory.
        """
        images = self._draw(labels, tokens, seeds, "pt")
        if residuals is not None:
            images = images + residuals.to(images)
        size, save = images.shape[-1], self.synthesis.save_size or images.shape[-1]
        if save != size:
            images = F.interpolate(
                images, size=(save, save), mode="bilinear", antialias=save < size, align_corners=False
            )
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def folder_names(names: list[str]) -> list[str]:
    """A folder name for each class: letters, digits, dots and dashes alone, since OpenOOD splits image lists at spaces.

    None of them leads out of the set's folder, or is the name of something else in it.
    """
    folders = [re.sub(r"[^\w.-]+", "_", name).strip("._") or "class" for name in names]
    taken = [*folders, "shards", "images.parquet", "imglist.txt", store.MANIFEST]
    return [f"{folder}_{i}" if taken.count(folder) > 1 else folder for i, folder in enumerate(folders)]


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


def set_inputs(
    source: Source, upstream: store.Artifact, names: list[str], synthesis: SynthesisSettings, *without_effect: str
) -> dict[str, Any]:
    """What decides about what is drawn of outliers: all settings but those `without_effect`."""
    return {
        "generator": source.identity,
        "outliers": upstream.hash,
        "class_names": names,
        "synthesis": drawing(synthesis, *without_effect),
    }


def drawing(synthesis: SynthesisSettings, *without_effect: str) -> dict[str, Any]:
    """The settings that decide about an image; those that are newer than some image sets only where they are used."""
    newer = [] if synthesis.residual else ["residual"]
    return synthesis.model_dump(exclude={*newer, *without_effect})


def run(config: Config) -> store.Artifact:
    """The imagine stage: `<class>/<id>.png`, `imglist.txt` (label -1 for outliers, the class for inliers) and
    `images.parquet` with a row per image."""
    dream, names = settings(config, "dream"), data.class_names(config)
    synthesis, on_ray = dream.synthesis, settings(config, "").executor == "ray"
    if on_ray:
        from openood_dream import distributed  # first of all, since it may not be installed
    generator.check_size(config)
    upstream = outliers_stage.run(config)
    source = generator.run(config)
    inputs = set_inputs(source, upstream, names, synthesis)

    def make(folder: Path) -> dict[str, Any]:
        wanted = store.shards(synthesis.per_class * len(names), synthesis.shard_size)
        todo = store.missing_shards(folder, wanted)
        if todo:
            total = sum(len(wanted[number]) for number in todo)
            with tqdm(total=total, desc="imagine: drawing images", unit="image") as bar:
                if on_ray:
                    build = partial(drawer, config, source, upstream, folder, None)
                    for number in distributed.each(build, todo, config.device or "auto"):
                        bar.update(len(wanted[number]))
                else:
                    draw = drawer(config, source, upstream, folder, bar)
                    for number in todo:
                        draw(number)
        table = store.join_shards(folder, len(wanted))
        return {"images": len(table), "generator": source.path}

    return store.build(dream.cache_dir, "images", inputs, make)


def drawer(
    config: Config, source: Source, outliers: store.Artifact, folder: Path, bar: tqdm | None
) -> Callable[[int], None]:
    """Loads the pipeline, and returns what draws the shard of a number and moves the `bar`, if there is one."""
    work = Shards(config, source, outliers, folder)
    wanted = store.shards(len(work.rows), work.synthesis.shard_size)

    def draw(number: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            work.draw(number, wanted[number], pool, bar)

    return draw


class Shards:
    """Draws the shards of an image set. A shard's content depends on the config and its number alone."""

    def __init__(self, config: Config, source: Source, outliers: store.Artifact, folder: Path) -> None:
        dream = settings(config, "dream")
        self.config, self.folder, self.synthesis, self.source = config, folder, dream.synthesis, source
        self.names = data.class_names(config)
        self.folders = folder_names(self.names)
        self.table, self.embeddings = outliers_stage.load(outliers)
        self.rows = choose(self.table, self.synthesis.per_class, len(self.names), self.synthesis.seed)
        self.keeps_class = dream.outliers.method == "inlier"
        pipeline = load_pipeline(source, config)
        self.imaginer = Imaginer(pipeline, self.names, self.synthesis)
        check_anchors(self.imaginer, self.embeddings)

    @cached_property
    def residuals(self) -> torch.Tensor | None:
        """What images get back, if anything; not made for latents, which get nothing."""
        if not self.synthesis.residual:
            return None
        return load_residuals(residuals(self.config, self.imaginer, self.source))

    def draw(self, number: int, images: range, pool: ThreadPoolExecutor, bar: tqdm | None) -> None:
        """Draws and writes one shard; its table comes last, when all its images are on disk."""
        written = []
        for batch in self.batches(images):
            labels, tokens, seeds = self.inputs(batch)
            lost = None if self.residuals is None else residuals_of(self.residuals, seeds)
            pixels = self.imaginer(labels, tokens, seeds, lost).permute(0, 2, 3, 1).numpy()
            rows = self.rows[batch]
            for i, row, label, seed, image in zip(batch, rows, labels.tolist(), seeds, pixels, strict=True):
                written.append(pool.submit(self.write, i, int(row), label, seed, image))
            if bar is not None:
                bar.update(len(batch))
        store.write_table(store.shard_table(self.folder, number), pd.DataFrame([row.result() for row in written]))

    def inputs(self, images: range) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Class labels (B,), class tokens (B, m) and noise seeds of some images of the set."""
        rows = self.rows[images]
        labels = torch.from_numpy(self.table["class"].to_numpy()[rows].astype(np.int64))
        return labels, self.embeddings[torch.from_numpy(rows)], [image_seed(self.synthesis.seed, i) for i in images]

    def batches(self, images: range) -> Iterator[range]:
        for start in range(images.start, images.stop, self.synthesis.batch_size):
            yield range(start, min(start + self.synthesis.batch_size, images.stop))

    def write(self, number: int, row: int, label: int, seed: int, image: np.ndarray) -> dict[str, Any]:
        """Writes one image and returns its row of the table."""
        file = Path(self.folders[label]) / f"{number:07d}.png"
        content = png(image)
        store.write_image(self.folder / file, content)
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


# --------------------------------------------------------------------------------------------------- what a decoder loses

RESIDUALS, RESIDUAL_BYTES = 1024, 1 << 28  # as many as fit


@torch.inference_mode()
def residuals(config: Config, imaginer: Imaginer, source: Source) -> store.Artifact:
    """`residuals.safetensors`: of random ID training images, the image less what the autoencoder makes of it.

    `residuals` are (R, 3, size, size) int16, in steps of 1/255. What is drawn lacks such detail: a network learns to call
    its absence OOD, or, worse, ID, and hardly looks at what is in the picture.
    """
    dream, dataset, size = settings(config, "dream"), config.dataset, imaginer.size
    inputs = {
        "generator": source.identity,
        "train": store.list_digest(dataset.train.imglist_pth, dataset.train.data_dir, "dataset.train.imglist_pth"),
        "transform": space_stage.transform_identity(config),
        "size": size,
        "seed": dream.synthesis.seed,
    }

    def make(folder: Path) -> None:
        images, vae = generator.training_images(config, size), imaginer.pipeline.vae
        count = max(1, min(RESIDUALS, len(images), RESIDUAL_BYTES // (2 * 3 * size**2)))
        picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(dream.synthesis.seed))[:count]
        dtype, found = vae.dtype, []
        vae.float()  # half precision has losses of its own
        for rows in tqdm(picked.split(dream.synthesis.batch_size), desc="imagine: residuals", unit="batch", delay=2):
            x = generator.unit_range(images.__getitems__(rows.tolist()), images).to(vae.device)
            again = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            found.append(((x - again) * 127.5).round().to(torch.int16).cpu())
        vae.to(dtype)
        store.write_tensors(folder / "residuals.safetensors", residuals=torch.cat(found))

    return store.build(dream.cache_dir, "residuals", inputs, make)


def load_residuals(artifact: store.Artifact) -> torch.Tensor:
    """The residuals (R, 3, S, S) of an artifact, int16."""
    return store.read_tensors(artifact.path / "residuals.safetensors")["residuals"]


def residuals_of(every: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """The residuals (B, 3, S, S), from -1 to 1, that images with these noise seeds get."""
    return every[[seed % len(every) for seed in seeds]].float() / 255


def check_anchors(imaginer: Imaginer, anchors: torch.Tensor) -> None:
    """Raises InputError where the embeddings are not as wide as the text encoders' tables."""
    width = sum(imaginer.widths)
    if anchors.shape[1] != width:
        raise InputError(
            f"dream.generator: takes token embeddings of {width} numbers, the anchors have {anchors.shape[1]}"
        )


def plain(config: Config, per_class: int, labels: Sequence[int] | None = None) -> store.Artifact:
    """`plain.safetensors`: `images` (L, per_class, 3, S, S) uint8 of the plain prompts of some classes, or of all: they
    show what the generator knows."""
    dream, names = settings(config, "dream"), data.class_names(config)
    shown = list(range(len(names)) if labels is None else labels)
    source = generator.run(config)
    inputs = {
        "generator": source.identity,
        "class_names": names,
        "synthesis": drawing(dream.synthesis, "residual"),
        "per_class": per_class,
        **({"labels": shown} if len(shown) < len(names) else {}),
    }

    def make(folder: Path) -> None:
        imaginer = Imaginer(load_pipeline(source, config), names, dream.synthesis)
        # a pipeline that was trained here knows a name of several tokens by its anchor alone
        trained = isinstance(dream.generator, GeneratorTraining)
        anchors = anchors_stage.load(anchors_stage.run(config)) if trained else None
        rows = []
        for label in tqdm(shown, desc="imagine: plain prompts", unit="class"):
            seeds = [image_seed(dream.synthesis.seed, label * per_class + i) for i in range(per_class)]
            parts = [seeds[i : i + dream.synthesis.batch_size] for i in range(0, per_class, dream.synthesis.batch_size)]
            for part in parts:
                labels = torch.full((len(part),), label)
                rows.append(imaginer(labels, None if anchors is None else anchors[labels], part))
        images = torch.cat(rows)
        store.write_tensors(folder / "plain.safetensors", images=images.view(len(shown), per_class, *images.shape[1:]))

    return store.build(dream.cache_dir, "plain", inputs, make)


def latents(config: Config) -> store.Artifact:
    """`latents.safetensors` with the UNet's `latents` (M, c, h, w) that the images of `run` would be decoded from, and
    `latents.parquet` with class, embedding and seed of each.

    For OAL (Gao & Li), which learns from the latents of outlier prompts and needs no image of them.
    """
    dream, names = settings(config, "dream"), data.class_names(config)
    synthesis = dream.synthesis
    upstream, source = outliers_stage.run(config), generator.run(config)
    inputs = set_inputs(source, upstream, names, synthesis, "save_size", "residual")

    def make(folder: Path) -> dict[str, Any]:
        wanted = store.shards(synthesis.per_class * len(names), synthesis.shard_size)
        files = [folder / "shards" / f"{number:06d}.safetensors" for number in range(len(wanted))]
        work = Shards(config, source, upstream, folder)
        done = sum(len(images) for images, file in zip(wanted, files, strict=True) if file.exists())
        with tqdm(total=len(work.rows), initial=done, desc="imagine: drawing latents", unit="latent") as bar:
            for images, file in zip(wanted, files, strict=True):
                if file.exists():
                    continue
                parts = []
                for batch in work.batches(images):
                    parts.append(work.imaginer.latents(*work.inputs(batch)))
                    bar.update(len(batch))
                store.write_tensors(file, latents=torch.cat(parts))
        store.join_tensors(folder / "latents.safetensors", "latents", files)
        columns = {
            "class": work.table["class"].to_numpy()[work.rows],
            "embedding": work.rows,
            "seed": [image_seed(synthesis.seed, number) for number in range(len(work.rows))],
        }
        store.write_table(folder / "latents.parquet", pd.DataFrame(columns))
        return {"latents": len(work.rows), "generator": source.path}

    artifact = store.build(dream.cache_dir, "latents", inputs, make)
    shutil.rmtree(artifact.path / "shards", ignore_errors=True)
    return artifact


# ------------------------------------------------------------------------------------------------------- before the run

PROBE_SECONDS = 10.0


def forecast(config: Config) -> str:
    """What `run` would draw, in lines: images, shards, disk, and the time by a probe of PROBE_SECONDS. Writes nothing.

    The probe draws random embeddings, which take as long as any.
    """
    generator.check_size(config)
    dream, names = settings(config, "dream"), data.class_names(config)
    synthesis = dream.synthesis
    wanted = store.shards(synthesis.per_class * len(names), synthesis.shard_size)
    total, missing = wanted[-1].stop, []

    def made(stage: Callable[[Config], Any]) -> Any:
        try:
            with store.reusing_only():
                return stage(config)
        except store.Missing as stage_name:
            if str(stage_name) not in missing:
                missing.append(str(stage_name))

    source, upstream = made(generator.run), made(outliers_stage.run)
    todo = range(len(wanted))
    if source and upstream:
        folder = store.folder_of(dream.cache_dir, "images", set_inputs(source, upstream, names, synthesis))
        todo = store.missing_shards(folder, wanted)
    left = sum(len(wanted[number]) for number in todo)
    lines = [
        f"images  {total:,} ({len(names)} classes of {synthesis.per_class:,})",
        f"shards  {len(wanted):,} of {synthesis.shard_size:,} images, {len(wanted) - len(todo):,} of them done",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            generator.untrained(config).save_pretrained(folder)
        pipeline = load_pipeline(source or Source(folder, None, None), config)
    rate, size = probe(Imaginer(pipeline, names, synthesis), PROBE_SECONDS)
    guess = "" if source else "; of an untrained generator, whose images take more room"
    lines.append(f"disk    {amount(total * size)} ({amount(size)} an image{guess})")
    lines.append(
        f"time    {duration(left / rate)} for the {left:,} images to draw: {rate:.3g} images/s on {pipeline.device}"
        f" in batches of {synthesis.batch_size}, by a probe of {PROBE_SECONDS:g} s"
    )
    if missing:
        lines.append(f"before  not made yet, and not in the time: {', '.join(missing)}, and what they need")
    return "\n".join(lines)


def probe(imaginer: Imaginer, seconds: float) -> tuple[float, float]:
    """Images per second, and bytes of an image as PNG, over whole batches for about so long, after one to warm up."""
    batch = imaginer.synthesis.batch_size
    labels = torch.arange(batch) % len(imaginer.prompts[0])
    table = torch.cat([encoder.get_input_embeddings().weight[-1] for _, encoder in imaginer.texts])
    tokens = F.normalize(torch.randn(batch, sum(imaginer.widths)), dim=1) * table.float().norm().cpu()
    images = imaginer(labels, tokens, list(range(batch)))
    batches, start = 0, time.perf_counter()
    while batches == 0 or time.perf_counter() - start < seconds:
        images = imaginer(labels, tokens, list(range(batch)))
        sizes = [len(png(image)) for image in images.permute(0, 2, 3, 1).numpy()]
        batches += 1
    return batches * batch / (time.perf_counter() - start), sum(sizes) / len(sizes)


def amount(size: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
