"""What a person sees of a long command: which job, which stage of how many, what was reused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tqdm import tqdm

from openood_dream.experiment import Experiment
from openood_dream.store.steps import Step, heard_by
from openood_dream.trainers.known import TRAINERS

STAGES = (
    "anchors",
    "space",
    "inversion",
    "outliers",
    "generator",
    "images",
    "quality",
)  # of the imagination, in their order


class Progress:
    """Says on standard error what is done; what several jobs share is said once."""

    def __init__(self) -> None:
        self._known = set[tuple[str, Path]]()

    @contextmanager
    def of(self, stages: Sequence[str], title: str = "") -> Iterator[None]:
        """Within the block, the steps of a job are said with their number.

        Args:
            stages: the names of the job's steps, in their order.
            title: a line before them.
        """
        if title:
            say(title)

        def listener(step: Step) -> None:
            if step.name not in stages:
                return
            place = f"stage {stages.index(step.name) + 1} of {len(stages)}: {step.name}"
            if step.path is None:
                say(place)
            elif (step.name, step.path) not in self._known:
                self._known.add((step.name, step.path))
                say(f"{place} {how(step)}: {step.path}")

        with heard_by(listener):
            yield


def how(step: Step) -> str:
    """How a step that is done came to what it has: reused, or made in so many seconds."""
    return "reused" if step.seconds is None else f"done in {step.seconds:.1f} s"


_relay: ContextVar[Callable[[str], None] | None] = ContextVar("relay", default=None)


@contextmanager
def relayed(to: Callable[[str], None]) -> Iterator[None]:
    """Within the block every line that is said is given to `to` as well."""
    token = _relay.set(to)
    try:
        yield
    finally:
        _relay.reset(token)


def say(line: str) -> None:
    """Writes a line to standard error, above whatever progress bar is there; nothing where those are turned off."""
    relay = _relay.get()
    if relay is not None:
        relay(line)
    if not os.environ.get("TQDM_DISABLE"):
        tqdm.write(line, file=sys.stderr)


def imagining(experiment: Experiment, last: str = STAGES[-1]) -> list[str]:
    """The stages of an imagination.

    Args:
        experiment: whose; one that is given a pipeline trains none.
        last: the last stage that is wanted.
    """
    dream = experiment.imagination
    needless = set[str]() if dream.training else {"generator"}
    order = list(STAGES)
    if dream.settings.space.method == "encoder":
        needless.add("inversion")
    else:  # by the generator, which comes first
        order.remove("generator")
        order.insert(order.index("inversion"), "generator")
    if last == "generator":
        needless |= {"inversion", "outliers"}
    return [name for name in order[: order.index(last) + 1] if name not in needless]


def job_stages(experiment: Experiment) -> list[str]:
    """The stages of a benchmark's job: those of its imagination, if it learns from that, then train and score."""
    auxiliary = TRAINERS[experiment.trainer.name].auxiliary
    imagined = auxiliary and experiment.dataset.split("oe").imagined
    last = "quality" if imagined and experiment.dream.filter.active else "images"
    return [*(imagining(experiment, last) if imagined else []), "train", "score"]
