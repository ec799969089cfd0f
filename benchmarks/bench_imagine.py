"""How fast images are drawn: `make bench`, or `pytest benchmarks/bench_imagine.py`.

The reference is the published procedure: batches of 3 images of one class and one embedding, both prompts encoded anew
for every batch, 50 PNDM steps, resizing by PIL, and PNG written before the next batch begins. Same weights, embeddings
and noise; all numbers include the writing of the files.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from full_size import TEMPLATE, stable_diffusion
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.generator.models import small_unet, small_vae
from openood_dream.dream.image_set import shard_table
from openood_dream.dream.images import Shards
from openood_dream.dream.imaginer import SCHEDULERS, Imaginer
from openood_dream.dream.settings import GeneratorTraining, SynthesisSettings
from openood_dream.dream.source import Source, make_text_encoder, text_inputs
from openood_dream.store.artifacts import Artifact
from openood_dream.store.tables import write_table
from openood_dream.store.tensors import write_index, write_tensors

NAMES = ["zero", "one", "two", "three", "four", "five"]
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
    training = GeneratorTraining(train="small")
    make_text_encoder(text_inputs(NAMES, TEMPLATE, training), folder)
    ((tokenizer, encoder),) = Source(str(folder), None, None).text_parts()
    return save(folder, small_vae(training, 16), small_unet(training, 4), tokenizer, encoder)


def full_size(folder: Path) -> Path:
    """Stable Diffusion 1.4 by its published configuration, with random weights."""
    stable_diffusion(folder, NAMES)
    return folder


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

    work: Shards
    size: Size

    def draw(self) -> None:
        """Draws the images, and is done when the last file is written."""
        with ThreadPoolExecutor(4) as pool, tqdm(disable=True) as bar:
            self.work.draw(0, range(self.size.images), pool, bar)

    def ours(self) -> torch.Tensor:
        """The images (N, S, S, 3) as they lie on disk when the last one is written."""
        self.draw()
        table = pd.read_parquet(shard_table(self.work.folder, 0))
        return torch.stack([read(self.work.folder / file) for file in table["file"]])

    def published(self, folder: Path, **changes) -> torch.Tensor:
        """The same by the published procedure, with another scheduler or number of steps if asked for."""
        synthesis = self.work.settings.model_copy(update={"save_size": None} | changes)
        imaginer, images = Imaginer(self.work.imaginer.pipeline, NAMES, synthesis), []
        for start in range(0, self.size.images, PUBLISHED_BATCH):
            batch = range(start, min(start + PUBLISHED_BATCH, self.size.images))
            drawn = imaginer(*self.work.inputs(batch))
            for number, image in zip(batch, drawn.permute(0, 2, 3, 1).numpy(), strict=True):
                picture = Image.fromarray(image).resize((self.size.save,) * 2, Image.Resampling.BILINEAR)
                picture.save(folder / f"{number}.png")
                images.append(read(folder / f"{number}.png"))
        return torch.stack(images)

    def with_scheduler(self, name: str) -> None:
        pipeline = self.work.imaginer.pipeline
        cls, options = SCHEDULERS[name]
        pipeline.scheduler = getattr(diffusers, cls).from_config(pipeline.scheduler.config, **options)


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def job(folder: Path, make, size: Size) -> Job:
    """All that `make_images` prepares, with embeddings around the anchors in place of sampled ones."""
    torch.manual_seed(0)
    settings = SynthesisSettings(
        per_class=size.images // len(NAMES),
        guidance=7.5,
        size=None,
        save_size=size.save,
        batch_size=size.batch,
        dtype=size.dtype,
    )
    source = Source(str(make(folder / "pipeline")), None, None)
    anchors = load_anchors(make_anchors(source, dict.fromkeys(NAMES, "{}"), folder / "dream"))
    # three images of one embedding one after the other, as the published procedure draws them
    classes = np.repeat(np.arange(size.images // PUBLISHED_BATCH) % len(NAMES), PUBLISHED_BATCH)
    noise = torch.randn(size.images // PUBLISHED_BATCH, anchors.shape[1]).repeat_interleave(PUBLISHED_BATCH, dim=0)
    upstream = Artifact(folder / "outliers", {}, False)
    write_tensors(upstream.path / "all.safetensors", **{"embeddings.0": anchors[classes] + 0.02 * noise})
    write_index(upstream.path, "embeddings", [upstream.path / "all.safetensors"])
    write_table(upstream.path / "outliers.parquet", pd.DataFrame({"class": classes, "boundary": 0, "distance": 1.0}))
    (folder / "images").mkdir()
    work = Shards(source, upstream, NAMES, settings, folder / "images")
    work.rows = np.arange(size.images)
    return Job(work, size)


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
    full = job(tmp_path, full_size, FULL)

    def reference() -> torch.Tensor:
        full.with_scheduler("pndm")
        return full.published(tmp_path, steps=50)

    def ours() -> torch.Tensor:
        full.with_scheduler("dpmsolver++")
        return full.ours()

    against(ours, reference, "the published procedure", wanted=6, rounds=2, reference_rounds=1, warmup=False)
    per_second(benchmark, FULL.images)
    benchmark.extra_info |= shares(full)


def shares(full: Job) -> dict[str, float]:
    """The UNet's and the text encoder's share of the time, and the share of the device's matrix rate, in percent.

    The text encoder's is what it costs to give the pipeline prompts in place of their encodings.
    """
    pipeline, starts = full.work.imaginer.pipeline, []
    device = pipeline.device
    spent: dict[str, list[float]] = {"unet": [], "text_encoder": []}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    hooks = [
        hook
        for part, seconds in spent.items()
        for hook in (
            getattr(pipeline, part).register_forward_pre_hook(lambda *_: starts.append(now())),
            getattr(pipeline, part).register_forward_hook(
                lambda *_, seconds=seconds: seconds.append(now() - starts[-1])
            ),
        )
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
        "unet_share_percent": 100 * sum(spent["unet"]) / total,
        "text_share_percent": 100 * sum(spent["text_encoder"]) / total,
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
    assert 0 < found["text_share_percent"] < found["unet_share_percent"] < 100
    assert 0 < found["matrix_rate_percent"] < 100
