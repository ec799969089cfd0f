"""The probe says what drawing a whole set would take, by a clock that moves only when something is computed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openood_dream.dream import probe as probing
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.probe import Probe, probe
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputWarning

STEP, DECODER = 3.0, 7.0  # seconds of a step and of the decoder, and a tenth of it for each image


class Clock:
    """A clock that each step and each decoding moves."""

    def __init__(self, pipe: Any) -> None:
        self.now, self.steps, self.decoded = 0.0, [], []
        pipe.unet.register_forward_hook(lambda module, args, output: self.step(len(output[0]) // 2))
        pipe.vae.decoder.register_forward_hook(lambda module, args, output: self.decode(len(output)))

    def step(self, images: int) -> None:
        self.steps.append(images)
        self.now += STEP * (1 + images / 10)

    def decode(self, images: int) -> None:
        self.decoded.append(images)
        self.now += DECODER * (1 + images / 10)


@pytest.fixture
def clocked(pipeline_folder, names, monkeypatch):
    """A pipeline whose drawing moves the clock that the probe looks at, for some settings."""

    def clocked(folder: Path = pipeline_folder, **changes: Any) -> tuple[Imaginer, Clock]:
        usual = {"steps": 8, "guidance": 3.0, "size": 16, "save_size": None, "batch_size": 6, "scheduler": "ddim"}
        settings = SynthesisSettings(**usual | changes)
        pipe = load_pipeline(Source(str(folder), None, None), settings, "cpu")
        clock = Clock(pipe)
        monkeypatch.setattr(probing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        return Imaginer(pipe, names, settings), clock

    return clocked


def taken(imaginer: Imaginer, clock: Clock, images: int) -> float:
    """Seconds of a whole batch, which is drawn."""
    start = clock.now
    begin = torch.zeros(images, 3, 16, 16) if imaginer.from_images else None
    imaginer(torch.zeros(images, dtype=torch.long), None, list(range(images)), starts=begin)
    return clock.now - start


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++", "euler", "lcm"])
@pytest.mark.parametrize("start", [{}, {"init": "id", "strength": 0.6}, {"init": "id", "strength": 0.3}])
def test_a_whole_batch_by_two_steps_of_it(clocked, scheduler, start):
    imaginer, clock = clocked(scheduler=scheduler, **start)
    found = probe(imaginer, 1000)
    assert found.batch == 6 and found.decoded and set(found.seconds) == {1, 2, 4, 6}
    before = len(clock.steps)
    for images in (6, 1, 3):
        assert found.batch_seconds(images) == pytest.approx(taken(imaginer, clock, images))
    assert found.steps == (len(clock.steps) - before) / 3 and found.taken in (2, 3)


def test_fewer_steps_than_the_probe_draws(clocked):
    imaginer, clock = clocked(steps=1)
    assert probe(imaginer, 1000).batch_seconds(6) == pytest.approx(taken(imaginer, clock, 6))


@pytest.mark.parametrize("seconds", [1, 4, 10, 20, 60, 200])
def test_it_ends_in_time_but_for_one_step_or_decoder(clocked, seconds):
    imaginer, clock = clocked(batch_size=64, steps=50)
    found = probe(imaginer, seconds)
    longest = max(clock.steps)
    last = max(STEP, DECODER) * (1 + longest / 10) if found.decoded else STEP * 1.1
    assert clock.now == found.spent <= seconds + last
    assert max(found.seconds) <= longest <= 64


def test_what_is_given_up_after_a_step_counts_the_decoder_as_one(clocked):
    imaginer, clock = clocked()
    found = probe(imaginer, 1)
    assert clock.steps == [1] and not clock.decoded and not found.decoded and found.sized == 0
    assert found.seconds == {1: pytest.approx((8 + 1) * STEP * 1.1)}
    assert found.note == "extrapolated from 1 of 8 steps of 1 image, the decoder as one more, in 3.3 s"
    assert found.size == 3 * 16 * 16
    taken(imaginer, clock, 2)  # the pipeline draws on
    assert "step" not in vars(imaginer.pipeline.scheduler)


def test_batches_that_are_not_reached_are_on_the_line_of_those_that_are(clocked):
    imaginer, clock = clocked(batch_size=64, steps=50)
    found = probe(imaginer, 80)
    assert max(found.seconds) in (2, 4, 8)
    assert found.batch_seconds(64) == pytest.approx(taken(imaginer, clock, 64))


def test_the_batch_that_fits_into_memory(clocked, monkeypatch):
    imaginer, clock = clocked()
    forward = imaginer.pipeline.unet.forward

    def limited(sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        if len(sample) > 8:  # two rows an image
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **options)

    monkeypatch.setattr(imaginer.pipeline.unet, "forward", limited)
    with pytest.warns(InputWarning, match="6 images of 16 pixels do not fit"):
        found = probe(imaginer, 1000)
    assert found.batch == 3 and max(found.seconds) == 4
    assert found.total([6], 6) == pytest.approx(2 * taken(imaginer, clock, 3))


def test_images_are_drawn_whole_for_their_size_where_there_is_time(clocked):
    imaginer, clock = clocked()
    assert probe(imaginer, 1000).sized == 8 and clock.steps[-8:] == [4] * 8
    assert probe(clocked()[0], 20).sized == 2


def test_seconds_of_shards():
    """As a loop over all batches says; batches of 10 are drawn in parts of 4."""
    seconds = {1: 3.0, 2: 5.0, 4: 6.0}
    found = Probe(4, 8, 2, True, seconds, 1.0, 100.0, 2, torch.device("cpu"))
    slow = 0.0
    for images in (25, 25, 7):
        for start in range(0, images, 10):
            count = min(10, images - start)
            while count > 0:
                slow += {1: 3.0, 2: 5.0, 3: 5.5, 4: 6.0}[min(4, count)]
                count -= 4
    assert math.isclose(found.total([25, 25, 7], 10), slow)
