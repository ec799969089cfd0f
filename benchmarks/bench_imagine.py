"""How fast images are drawn: `make bench`, or `pytest benchmarks/bench_imagine.py`.

The reference is the published procedure: batches of 3 images of one class and one embedding, both prompts encoded anew
for every batch, 50 PNDM steps, resizing by PIL, and PNG written before the next batch begins. Same weights, embeddings
and noise; all numbers include the writing of the files.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from openood_dream import anchors, generator, imagine, outliers, store
from openood_dream.anchors import Source
from openood_dream.config import Config, GeneratorTraining, load_config

NAMES = ["zero", "one", "two", "three", "four", "five"]
TEMPLATE = "A high-quality image of the {}"
PUBLISHED_BATCH = 3


class Size(NamedTuple):
    """What is drawn, and how."""

    save: int
    images: int
    batch: int
    dtype: str


SMALL = Size(save=16, images=96, batch=32, dtype="float32")
FULL = Size(save=256, images=48, batch=16, dtype="bfloat16")


def small(folder: Path) -> Path:
    """The embedded default at the size of the digits, untrained: weights do not change the time."""
    anchors.make_text_encoder({"class_names": NAMES, "prompt": TEMPLATE, "dim": 64, "norm": 0.4, "seed": 0}, folder)
    text = Source(str(folder), None, None)
    ((tokenizer, encoder),) = text.text_parts()
    training = GeneratorTraining(train="small")
    return save(folder, generator.small_vae(training, 16), generator.small_unet(training, 4), tokenizer, encoder)


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 1.4 by its published configuration, with random weights."""
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    tokenizer = anchors.word_tokenizer([*NAMES, TEMPLATE.format("")])
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    return save(folder, vae, unet, tokenizer, CLIPTextModel(text))


def save(folder: Path, vae, unet, tokenizer, encoder) -> Path:
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    parts = {"vae": vae, "unet": unet, "tokenizer": tokenizer, "text_encoder": encoder, "scheduler": scheduler}
    pipeline = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return folder


class Job(NamedTuple):
    """A pipeline, what it is to draw, and where the files go."""

    config: Config
    work: imagine.Shards
    size: Size

    def ours(self) -> torch.Tensor:
        """The images (N, S, S, 3) as they lie on disk when the last one is written."""
        with ThreadPoolExecutor(4) as pool, tqdm(disable=True) as bar:
            self.work.draw(0, range(self.size.images), pool, bar)
        table = pd.read_parquet(store.shard_table(self.work.folder, 0))
        return torch.stack([read(self.work.folder / file) for file in table["file"]])

    def published(self, folder: Path, **changes) -> torch.Tensor:
        """The same by the published procedure, with another scheduler or number of steps if asked for."""
        synthesis = self.work.synthesis.model_copy(update={"save_size": None} | changes)
        imaginer, images = imagine.Imaginer(self.work.imaginer.pipeline, NAMES, synthesis), []
        for start in range(0, self.size.images, PUBLISHED_BATCH):
            batch = range(start, min(start + PUBLISHED_BATCH, self.size.images))
            imaginer.negative = imaginer._negative()
            drawn = imaginer(*self.work.inputs(batch))
            for number, image in zip(batch, drawn.permute(0, 2, 3, 1).numpy(), strict=True):
                picture = Image.fromarray(image).resize((self.size.save,) * 2, Image.Resampling.BILINEAR)
                picture.save(folder / f"{number}.png")
                images.append(read(folder / f"{number}.png"))
        return torch.stack(images)

    def with_scheduler(self, name: str) -> None:
        pipeline = self.work.imaginer.pipeline
        cls, options = imagine.SCHEDULERS[name]
        pipeline.scheduler = getattr(imagine.diffusers, cls).from_config(pipeline.scheduler.config, **options)


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def job(folder: Path, make, size: Size) -> Job:
    """All that `imagine.run` prepares, with embeddings around the anchors in place of sampled ones."""
    torch.manual_seed(0)
    given = {
        "generator": str(make(folder / "pipeline")),
        "class_names": json.dumps(NAMES),
        "cache_dir": str(folder / "dream"),
        "synthesis.per_class": size.images // len(NAMES),
        "synthesis.guidance": 7.5,
        "synthesis.size": "null",
        "synthesis.save_size": size.save,
        "synthesis.batch_size": size.batch,
        "synthesis.dtype": size.dtype,
    }
    words = [str(word) for key, value in given.items() for word in (f"--dream.{key}", value)]
    config = load_config(["benchmarks/digits.yml", "benchmarks/methods/base.yml"], words)
    made = anchors.load(anchors.run(config))
    # three images of one embedding one after the other, as the published procedure draws them
    classes = np.repeat(np.arange(size.images // PUBLISHED_BATCH) % len(NAMES), PUBLISHED_BATCH)
    noise = torch.randn(size.images // PUBLISHED_BATCH, made.shape[1]).repeat_interleave(PUBLISHED_BATCH, dim=0)
    upstream = folder / "outliers"
    store.write_tensors(upstream / "embeddings.safetensors", embeddings=made[classes] + 0.02 * noise)
    store.write_table(upstream / "outliers.parquet", pd.DataFrame({"class": classes, "distance": 1.0}))
    (folder / "images").mkdir()
    work = imagine.Shards(config, generator.run(config), store.Artifact(upstream, {}, False), folder / "images")
    work.rows = np.arange(size.images)
    assert len(outliers.load(store.Artifact(upstream, {}, False))[0]) == size.images
    return Job(config, work, size)


@pytest.fixture(scope="module")
def small_job(tmp_path_factory) -> Job:
    return job(tmp_path_factory.mktemp("small"), small, SMALL)


def test_drawing_with_the_small_pipeline(against, benchmark, small_job, tmp_path):
    """20 steps of DPM-Solver++ in batches that mix classes."""

    def reference() -> torch.Tensor:
        small_job.with_scheduler("pndm")
        return small_job.published(tmp_path, steps=50)

    def ours() -> torch.Tensor:
        small_job.with_scheduler("dpmsolver++")
        return small_job.ours()

    images, others = against(ours, reference, "the published procedure", wanted=4, rounds=5)
    assert images.shape == others.shape
    per_second(benchmark, len(images))


def test_drawing_at_equal_steps_and_scheduler(against, benchmark, small_job, tmp_path):
    small_job.with_scheduler("dpmsolver++")
    images, others = against(
        small_job.ours, lambda: small_job.published(tmp_path), "the published procedure", wanted=1.3, rounds=5
    )
    assert (images.int() - others.int()).abs().max() <= 1  # of 255, by the size of the batch
    per_second(benchmark, len(images))


def per_second(benchmark, images: int) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = images / benchmark.stats.stats.min


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Stable Diffusion 1.4 at 512 pixels needs a GPU")
def test_drawing_with_stable_diffusion_on_a_gpu(against, benchmark, tmp_path):
    """Random weights, bfloat16, 512 pixels; with the share of the UNet and of the card's matrix rate."""
    full = job(tmp_path, stable_diffusion, FULL)

    def reference() -> torch.Tensor:
        full.with_scheduler("pndm")
        return full.published(tmp_path, steps=50)

    def ours() -> torch.Tensor:
        full.with_scheduler("dpmsolver++")
        return full.ours()

    against(ours, reference, "the published procedure", wanted=6, rounds=2, reference_rounds=1)
    per_second(benchmark, FULL.images)
    benchmark.extra_info |= shares(full)


def shares(full: Job) -> dict[str, float]:
    """The UNet's share of the time, and the share of the device's matrix rate that it achieves, in percent."""
    unet, device = full.work.imaginer.pipeline.unet, full.work.imaginer.pipeline.device
    spent, starts = [], []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    hooks = [
        unet.register_forward_pre_hook(lambda *_: starts.append(now())),
        unet.register_forward_hook(lambda *_: spent.append(now() - starts[-1])),
    ]
    start = now()
    full.ours()
    total = now() - start
    for hook in hooks:
        hook.remove()
    with FlopCounterMode(display=False) as counter:
        full.work.imaginer(*full.work.inputs(range(full.size.batch)))
    operations = counter.get_total_flops() * full.size.images / full.size.batch
    return {
        "unet_share_percent": 100 * sum(spent) / total,
        "matrix_rate_percent": 100 * operations / total / matrix_rate(device, getattr(torch, full.size.dtype), now),
    }


def matrix_rate(device: torch.device, dtype: torch.dtype, now, width: int = 8192) -> float:
    """Operations per second of a large matrix product, as measured."""
    width = width if device.type == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    a @ b
    start = now()
    for _ in range(10):
        a @ b
    return 10 * 2 * width**3 / (now() - start)


def test_the_shares_can_be_measured(small_job):
    """On any machine, so that the GPU's measurement does not break unseen."""
    found = shares(small_job)
    assert 0 < found["unet_share_percent"] < 100 and 0 < found["matrix_rate_percent"] < 100
