"""How long images take to draw, from two steps of batches that grow: the other steps take as long, and need no drawing."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F

from openood_dream.dream.imaginer import Imaginer, png
from openood_dream.dream.placing import drawing_device
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.steps import watched

STEPS = 2  # that are drawn of each batch
SIZED = 4  # images that are drawn whole, where there is time, to know the size of their files
STEPPING = 0.8  # share of the time after which no other batch is begun


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Args:
        batch: images of a batch, as many as the settings say or as fit into memory.
        steps: of how many steps a batch consists.
        taken: how many of them were drawn.
        decoded: whether there was time for the decoder; else it counts as a step.
        seconds: seconds of a whole batch by its number of images.
        spent: seconds that the probe took.
        size: bytes of an image as PNG.
        sized: of how many steps the images were that have this size; 0 for none, and the size is that of raw pixels.
        device: where they were drawn.
    """

    batch: int
    steps: int
    taken: int
    decoded: bool
    seconds: dict[int, float]
    spent: float
    size: float
    sized: int
    device: torch.device

    def batch_seconds(self, images: int) -> float:
        """Seconds of a batch, on straight lines between what was measured, and beyond it on one through both ends.

        Args:
            images: how many it has.
        """
        sizes = sorted(self.seconds)
        if len(sizes) == 1:
            return self.seconds[sizes[0]] * images / sizes[0]
        after = next((i for i, size in enumerate(sizes) if i and size >= images), None)
        low, high = (sizes[0], sizes[-1]) if after is None else (sizes[after - 1], sizes[after])
        slope = max(0.0, (self.seconds[high] - self.seconds[low]) / (high - low))
        return self.seconds[high] + slope * (images - high)

    def total(self, parts: Sequence[int], batch_size: int) -> float:
        """Seconds of shards, which are drawn batch by batch.

        Args:
            parts: how many images each of them has.
            batch_size: images of a batch, as the settings say.
        """
        batches = [count for images in parts for count in _divided(images, batch_size)]
        return sum(self.batch_seconds(count) for images in batches for count in _divided(images, self.batch))

    @property
    def note(self) -> str:
        """What the time was extrapolated from, in words."""
        images = max(self.seconds)
        decoder = "" if self.decoded else ", the decoder as one more"
        what = f"{self.taken} of {self.steps} steps of {images} image{'s' if images > 1 else ''}{decoder}"
        return f"extrapolated from {what}, in {self.spent:.3g} s"


def probe(imaginer: Imaginer, seconds: float) -> Probe:
    """Draws two steps of batches that grow from one image to a whole batch, as far as they fit into the time.

    What takes too long is given up after the step that ends beyond the time; a decoder that began within it is waited for.

    Args:
        imaginer: what draws them, as it is to draw the whole set.
        seconds: the time.

    Returns:
        What was measured.
    """
    settings, start = imaginer.settings, time.perf_counter()
    few = Imaginer(imaginer.pipeline, imaginer.names, settings.model_copy(update={"steps": _few_steps(settings)}))
    found: defaultdict[int, list[_Batch]] = defaultdict(list)
    each = 0.0  # seconds of an image in the last batch, which an image in a larger one hardly exceeds
    for growing in _sizes(settings.batch_size):
        count = min(growing, few.fitting or growing)
        if each * count > start + STEPPING * seconds - time.perf_counter():
            break
        drawn = _drawn(few, count, start + seconds)
        if few.fitting and few.fitting < count:
            continue  # it was drawn in parts
        if drawn.images is None and found:
            break
        found[count].append(drawn)
        if drawn.images is None:
            break
        each = (drawn.end - drawn.start) / count
    last = found[max(found)][-1]
    total = last.steps(settings, few.settings, imaginer.pipeline.scheduler)
    # the first batch of a size warms up
    whole = {count: median(batch.whole(total) for batch in some[1:] or some) for count, some in found.items()}
    images, sized = last.images, len(last.ends)
    if min(SIZED, settings.batch_size) * whole[min(whole)] < start + seconds - time.perf_counter():
        images, sized = _drawn(imaginer, min(SIZED, settings.batch_size), math.inf).images, total
    pixels = (settings.save_size or imaginer.size) ** 2
    size = 3.0 * pixels if images is None else fmean(len(png(image)) for image in images.permute(0, 2, 3, 1).numpy())
    return Probe(
        batch=min(settings.batch_size, few.fitting or settings.batch_size),
        steps=total,
        taken=len(last.ends),
        decoded=last.images is not None,
        seconds=whole,
        spent=time.perf_counter() - start,
        size=size,
        sized=0 if images is None else sized,
        device=drawing_device(imaginer.pipeline),
    )


class _Enough(Exception):
    """The time is up."""


@dataclass
class _Batch:
    """A batch that was drawn, or begun.

    Args:
        start: when it began.
        ends: when each of its steps ended.
        end: when all of it ended.
        images: what was drawn; None where it was given up before that.
    """

    start: float
    ends: list[float] = field(default_factory=list)
    end: float = 0.0
    images: torch.Tensor | None = None

    def steps(self, settings: SynthesisSettings, few: SynthesisSettings, scheduler: Any) -> int:
        """Of how many calls of its scheduler a batch of `settings` consists, by this one of `few`.

        Args:
            settings: of the whole set.
            few: what this one was drawn with.
            scheduler: the scheduler, which is called `order` times for a step, and by some pipelines once more.
        """
        order = getattr(scheduler, "order", 1)
        if self.images is None:
            return order * _denoised(settings)
        return len(self.ends) + order * (_denoised(settings) - _denoised(few))

    def whole(self, steps: int) -> float:
        """Seconds of all of it, with its missing steps as long as the others and a missing decoder as long as a step.

        Args:
            steps: how many steps it should have.
        """
        first, last = self.ends[0], self.ends[-1]
        step = (last - first) / (len(self.ends) - 1) if len(self.ends) > 1 else first - self.start
        return self.end - self.start + step * (steps - len(self.ends) + (self.images is None))


def _drawn(imaginer: Imaginer, count: int, stop: float) -> _Batch:
    """Draws images of random embeddings, which take as long as any, and gives up after a step that ends after `stop`."""
    labels = torch.arange(count) % len(imaginer.names)
    length = imaginer.placeholder.anchors[0].norm()
    tokens = F.normalize(torch.randn(count, imaginer.width), dim=1) * length
    begin = torch.zeros(count, 3, imaginer.size, imaginer.size) if imaginer.from_images else None
    batch = _Batch(time.perf_counter())
    with _ticking(imaginer, batch, stop), suppress(_Enough):
        batch.images = imaginer(labels, tokens, list(range(count)), starts=begin)
    batch.end = time.perf_counter()
    return batch


@contextmanager
def _ticking(imaginer: Imaginer, batch: _Batch, stop: float) -> Iterator[None]:
    """Within the block the ends of steps are noted, each of which is a call of the scheduler; _Enough after `stop`."""
    device = drawing_device(imaginer.pipeline)

    def note(*args: Any, **options: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        batch.ends.append(time.perf_counter())
        if batch.ends[-1] > stop:
            raise _Enough

    try:
        with watched(imaginer.pipeline.scheduler, note):
            yield
    finally:
        imaginer.pipeline.maybe_free_model_hooks()  # a call that was given up did not come to it


def _few_steps(settings: SynthesisSettings) -> int:
    """The steps to ask for so that STEPS are drawn, from a start that is noised to a part of the schedule too."""
    return min(settings.steps, math.ceil(STEPS / settings.strength) if settings.init == "id" else STEPS)


def _denoised(settings: SynthesisSettings) -> int:
    """The steps that are drawn: from a start only the last share of them."""
    return max(1, int(settings.steps * settings.strength)) if settings.init == "id" else settings.steps


def _sizes(most: int) -> Iterator[int]:
    """One image twice, which warms up, then twice as many again and again, and at last batches of `most`."""
    size = 1
    yield size
    while True:
        yield size
        size = min(2 * size, most)


def _divided(count: int, most: int) -> list[int]:
    """Numbers of `most` that add up to a count, and what is left."""
    return [most] * (count // most) + [count % most] * (count % most > 0)
