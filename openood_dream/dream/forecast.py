"""What drawing an image set would take, before anything is drawn: images, shards, disk and time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from openood_dream.dream.guided import Guidance
from openood_dream.dream.image_set import missing_shards, shards
from openood_dream.dream.images import set_inputs
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.probe import Probe, probe
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
    guidance: Guidance | None = None,
    plain: Sequence[int] = (),
) -> str:
    """What `make_images` would draw: images, shards, disk, and the time by a probe of PROBE_SECONDS. Writes nothing.

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
        guidance: what guides the drawing; None: nothing does, or it cannot be said yet.
        plain: how many images of plain prompts are drawn before, of each class that has some.

    Returns:
        Lines of text.
    """
    wanted = shards(settings.per_class * len(names), settings.shard_size)
    total, todo = wanted[-1].stop, list(range(len(wanted)))
    if source and outliers:
        inputs = set_inputs(source, outliers, names, settings, starts=starts, guidance=guidance)
        todo = missing_shards(folder_of(cache_dir, "images", inputs, outliers.label), wanted)
    left = sum(len(wanted[number]) for number in todo)
    total, left, pairs = (2 * total, 2 * left, " pairs") if settings.pair else (total, left, "")
    lines = [
        f"images  {total:,} ({len(names)} classes of {settings.per_class:,}{pairs})",
        f"shards  {len(wanted):,} of {settings.shard_size:,} images, {len(wanted) - len(todo):,} of them done",
    ]
    found, loading = _probed(source, names, settings, untrained, device)
    drawing = found.total([len(wanted[number]) for number in todo], settings.batch_size)
    if settings.pair is True:  # of others only the autoencoder has the inlier
        drawing *= 2
    rate = left / drawing if left else found.batch / found.batch_seconds(found.batch)
    seconds, more = (drawing + loading if left else 0.0), ""
    if left and plain:
        seconds += found.total(plain, settings.batch_size) + loading
        more = f" and {sum(plain):,} of plain prompts"
    guess = "" if source else "; untrained, whose images take more room"
    lines += [
        _disk(found, total, guess),
        f"time    {duration(seconds)} for the {left:,} images to draw{more}: {rate:.3g} images/s on {found.device} in batches of "
        f"{found.batch}{', not compiled' if settings.compile else ''}, {found.note}",
    ]
    return "\n".join([*lines, *_besides(settings, missing)])


def _besides(settings: SynthesisSettings, missing: Sequence[str]) -> list[str]:
    """Lines about what is not in the time."""
    lines = []
    if settings.guide.active:
        lines.append("guide   not in the time: each guided step goes through decoder and judge, and back")
    if missing:
        lines.append(f"before  not made yet, and not in the time: {', '.join(missing)}, and what they need")
    return lines


def _disk(found: Probe, total: int, guess: str) -> str:
    least = "" if found.sized else "at most "
    return f"disk    {least}{amount(total * found.size)} ({amount(found.size)} an image{guess})"


def _probed(
    source: Source | None,
    names: Sequence[str],
    settings: SynthesisSettings,
    untrained: Callable[[], DiffusionPipeline],
    device: str,
) -> tuple[Probe, float]:
    """What was measured, and the seconds that loading the pipeline took."""
    eager = settings.model_copy(update={"compile": False})  # compiling takes longer than the probe may
    with tempfile.TemporaryDirectory() as place:
        if source is None:
            untrained().save_pretrained(place)
        start = time.perf_counter()
        pipeline = load_pipeline(source or Source(place, None, None), eager, device)
        loading = time.perf_counter() - start
    return probe(Imaginer(pipeline, names, eager), PROBE_SECONDS), loading


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
