"""What drawing an image set would take, before anything is drawn: images, shards, disk and time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from openood_dream.dream.image_set import missing_shards, shards
from openood_dream.dream.images import set_inputs
from openood_dream.dream.imaginer import Imaginer, load_pipeline, png
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.starts import Starts
from openood_dream.store.artifacts import Artifact, folder_of

PROBE_SECONDS = 10.0


def forecast(
    source: Source | None,
    outliers: Artifact | None,
    names: Sequence[str],
    settings: SynthesisSettings,
    cache_dir: str | Path,
    *,
    untrained: Callable[[], DiffusionPipeline],
    missing: Sequence[str] = (),
    device: str = "auto",
    starts: Starts | None = None,
) -> str:
    """What `make_images` would draw: images, shards, disk, and the time by a probe of PROBE_SECONDS. Writes nothing.

    The probe draws random embeddings, which take as long as any.

    Args:
        source: where the pipeline comes from; None for one that is not trained yet.
        outliers: the artifact of the embeddings; None where they are not made yet.
        names: the class names in label order.
        settings: how images are drawn.
        cache_dir: folder of all artifacts.
        untrained: makes a pipeline like the one that is not trained yet; called where `source` is None.
        missing: the stages that would have to be made first.
        device: the config's word for the device.
        starts: the ID images that drawing starts from; None: it starts from noise, or they cannot be said yet.

    Returns:
        Lines of text.
    """
    wanted = shards(settings.per_class * len(names), settings.shard_size)
    total, todo = wanted[-1].stop, list(range(len(wanted)))
    if source and outliers:
        folder = folder_of(
            cache_dir, "images", set_inputs(source, outliers, names, settings, starts=starts), outliers.label
        )
        todo = missing_shards(folder, wanted)
    left = sum(len(wanted[number]) for number in todo)
    if settings.pair:
        total, left = 2 * total, 2 * left
    lines = [
        f"images  {total:,} ({len(names)} classes of {settings.per_class:,}{' pairs' if settings.pair else ''})",
        f"shards  {len(wanted):,} of {settings.shard_size:,} images, {len(wanted) - len(todo):,} of them done",
    ]
    with tempfile.TemporaryDirectory() as place:
        if source is None:
            untrained().save_pretrained(place)
        pipeline = load_pipeline(source or Source(place, None, None), settings, device)
    rate, size = probe(Imaginer(pipeline, names, settings), PROBE_SECONDS)
    guess = "" if source else "; of an untrained generator, whose images take more room"
    lines.append(f"disk    {amount(total * size)} ({amount(size)} an image{guess})")
    lines.append(
        f"time    {duration(left / rate)} for the {left:,} images to draw: {rate:.3g} images/s on {pipeline.device}"
        f" in batches of {settings.batch_size}, by a probe of {PROBE_SECONDS:g} s"
    )
    if missing:
        lines.append(f"before  not made yet, and not in the time: {', '.join(missing)}, and what they need")
    return "\n".join(lines)


def probe(imaginer: Imaginer, seconds: float) -> tuple[float, float]:
    """Measures how fast images are drawn, over whole batches, after one to warm up.

    Args:
        imaginer: what draws them.
        seconds: for about how long.

    Returns:
        Images per second, and bytes of an image as PNG.
    """
    batch = imaginer.settings.batch_size
    labels = torch.arange(batch) % len(imaginer.names)
    table = imaginer.placeholder.anchors[0]
    tokens = F.normalize(torch.randn(batch, imaginer.width), dim=1) * table.float().norm().cpu()
    begin = torch.zeros(batch, 3, imaginer.size, imaginer.size) if imaginer.from_images else None
    draw = partial(imaginer, labels, tokens, list(range(batch)), starts=begin)
    draw()
    batches, start, sizes = 0, time.perf_counter(), [0]
    while batches == 0 or time.perf_counter() - start < seconds:
        images = draw()
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
