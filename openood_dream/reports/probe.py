"""Whether image statistics give outliers away: the spectra of the images that methods learned from, and a probe's AUROC."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from openood_dream.datasets.images import ImageList
from openood_dream.dream.plain import spread
from openood_dream.evaluators.probe import FOLDS, WARNING, Statistics, image_statistics, probe
from openood_dream.networks.settings import GenerativeNetwork
from openood_dream.reports.benchmarked import Run, learned_from_images
from openood_dream.reports.plots import DASHES, PALETTE
from openood_dream.reports.style import BLUE, SOFT, WIDTH, png, styled, write_title
from openood_dream.trainers.known import TRAINERS

with suppress(ImportError):  # of the extra "report", of which `styled` tells
    from matplotlib.figure import Figure

MOST = 2000  # images of a set that are looked at, evenly spread over its list
BATCH = 256
COLOURS = tuple(colour for colour in PALETTE if colour != BLUE)  # which is that of ID images


class Probed(NamedTuple):
    """What the probe says of the images that a method learned from.

    Attributes:
        found: their statistics.
        auroc: how well they are told from ID training images, in percent.
    """

    found: Statistics
    auroc: float


def probed(first: Mapping[str, Run]) -> tuple[dict[str, bytes], list[str]]:
    """How well image statistics alone tell the auxiliary images of each method from ID training images.

    All are compared as trainers see them, at the size of the data set. Methods that share images have one line.

    Args:
        first: a run of each method.

    Returns:
        The figure `probe`, as PNG, where there are such images, and a sentence, with a warning where the probe succeeds.
    """
    known, judged, few = dict[str, Statistics](), dict[str, Probed](), []
    for name, (run, images) in auxiliary_sets(first).items():
        train, found = run.experiment.data.images("dataset", "train"), statistics_of(images)
        if _about(train) not in known:
            known[_about(train)] = statistics_of(train)
        id_images = known[_about(train)]
        if len(found.spectra) < FOLDS:
            few.append(f"Probe: {name} has {len(found.spectra)} images, too few to be told from ID images.")
        else:
            judged[name] = Probed(found, probe(id_images, found))
    if not judged:
        return {}, few
    figure = spectra(next(iter(known.values())), judged)
    return {"probe": figure}, [sentence({name: one.auroc for name, one in judged.items()}), *few]


def auxiliary_sets(first: Mapping[str, Run]) -> dict[str, tuple[Run, ImageList]]:
    """The images that each method learned from besides the ID images, as its trainer sees them; of pairs the outliers.

    Args:
        first: a run of each method.

    Returns:
        By the first method with it, each set with that method's run.
    """
    found: dict[str, tuple[str, Run, ImageList]] = {}
    for method, run in first.items():
        images = None if isinstance(run.experiment.network, GenerativeNetwork) else _auxiliary(run)
        if images is not None:
            found.setdefault(_about(images), (method, run, images))
    return {method: (run, images) for method, run, images in found.values()}


def _about(images: ImageList) -> str:
    """What tells lists of one benchmark apart."""
    return f"{images.imglist} {images.transform.test_identity}"


def _auxiliary(run: Run) -> ImageList | None:
    experiment = run.experiment
    if learned_from_images(run):
        chosen = experiment.imagination.training_images()
        return experiment.data.open_auxiliary(chosen.imglist, chosen.data_dir)
    if TRAINERS[experiment.trainer.name].auxiliary and not experiment.dataset.split("oe").imagined:
        return experiment.data.images("dataset", "oe")
    return None


def outlier_rows(images: ImageList, most: int) -> torch.Tensor:
    """Some images of a list, evenly spread over it; of its outliers alone where some of it are labelled with a class.

    Args:
        images: the list.
        most: how many, at most.

    Returns:
        Their numbers in the list.
    """
    rows = (images.labels < 0).nonzero()[:, 0]
    rows = rows if len(rows) else torch.arange(len(images))
    return rows[torch.tensor(spread(len(rows), most))]


def statistics_of(images: ImageList) -> Statistics:
    """Statistics of at most MOST images of a list; of its outliers alone where some of it are labelled with a class.

    Args:
        images: the list.
    """
    parts = outlier_rows(images, MOST).split(BATCH)
    found = [image_statistics(images.pixels(part).cpu().numpy()) for part in parts]
    spectra, colours = (np.concatenate([getattr(one, key) for one in found]) for key in ("spectra", "colours"))
    return Statistics(found[0].frequencies, spectra, colours)


def sentence(aurocs: Mapping[str, float]) -> str:
    """What a report says of a probe's results.

    Args:
        aurocs: in percent, by the name of the set.
    """
    said = ", ".join(f"{name} {auroc:.1f}" for name, auroc in aurocs.items())
    text = (
        f"Probe: AUROC (%) of image statistics alone, auxiliary against ID training images: {said}; near 50 is wanted."
    )
    told = [name for name, auroc in aurocs.items() if auroc > WARNING]
    if told:
        text += (
            f" Over {WARNING:.0f} (here {', '.join(told)}) a network may learn to tell how images were made instead of "
            "what they show: see dream.synthesis.init and residual, dataset.oe.interpolation and jpeg."
        )
    return text


def spectra(known: Statistics, judged: Mapping[str, Probed]) -> bytes:
    """Mean log-spectra of ID images and of other sets, and how far these are from ID, as PNG.

    Args:
        known: statistics of ID images.
        judged: what the probe says of each set.
    """
    frequencies, middle = known.frequencies, known.spectra.mean(0)
    deviation = np.maximum(known.spectra.std(0), 1e-9)
    with styled():
        fig = Figure(figsize=(WIDTH, 4.2 + 0.24 * max(0, len(judged) - 8)), layout="constrained")
        write_title(fig, "Spectra, and how well image statistics alone tell a set from ID")
        left, right = fig.subplots(1, 2)
        spread_of_id = {"color": BLUE, "alpha": 0.2, "linewidth": 0}
        left.fill_between(frequencies, middle - deviation, middle + deviation, **spread_of_id)
        right.fill_between(frequencies, -1, 1, **spread_of_id)
        for ax, line in ((left, middle), (right, 0 * middle)):
            ax.plot(frequencies, line, color=BLUE, linewidth=2, label=f"ID training images ({len(known.spectra):,})")
        for number, (name, one) in enumerate(judged.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
            mean, label = one.found.spectra.mean(0), f"{name} ({len(one.found.spectra):,}): AUROC {one.auroc:.1f}"
            if len(mean) == len(middle):  # else of a method with images of another size
                left.plot(frequencies, mean, linewidth=1.6, label=label, **look)
                right.plot(frequencies, (mean - middle) / deviation, linewidth=1.6, label=label, **look)
        left.set(title="mean log-spectrum", ylabel="log10 of the power")
        right.set(title="difference to ID", ylabel="standard deviations of ID images")
        for ax in (left, right):
            ax.set_xlabel("frequency (cycles per pixel)", color=SOFT)
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return png(fig)
