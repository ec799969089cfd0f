"""The stages of the imagination by name, and figures of what they made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openood_dream.dream.chain import Dream
from openood_dream.dream.samplers import SAMPLERS
from openood_dream.errors import InputError, check_name
from openood_dream.experiment import Experiment, load_config
from openood_dream.extras import check_installed
from openood_dream.pipelines.progress import STAGES, Progress, imagining
from openood_dream.reports import gallery
from openood_dream.store import artifacts, files
from openood_dream.store.artifacts import Artifact


@files.looked_once()
def stages(names: Sequence[str], config_files: Sequence[str], overrides: Sequence[str] = ()) -> list[Artifact]:
    """Stages of the imagination, made with all that they need where they are not there yet.

    Args:
        names: some of STAGES; the space is what outliers are sampled around.
        config_files: config files with a section `dream`, merged left to right.
        overrides: the words `--key value` laid over them.

    Returns:
        The artifact of each.

    Raises:
        InputError: the config or its data are not fit for it.
    """
    experiment = _imagination(config_files, overrides)
    if experiment.dream.space.method == "inversion":  # whose space is the generator's
        names = ["inversion" if name == "space" else name for name in names]
    last = max(names, key=STAGES.index)
    with Progress().of(imagining(experiment, last)):
        return [_artifact(experiment.imagination, name) for name in names]


def stage(name: str, config_files: Sequence[str], overrides: Sequence[str] = ()) -> Artifact:
    """One stage of the imagination, as `stages`.

    Args:
        name: one of STAGES.
        config_files: config files.
        overrides: words laid over them.
    """
    return stages([name], config_files, overrides)[0]


def _artifact(dream: Dream, name: str) -> Artifact:
    found = getattr(dream, name)
    if found is None:
        pipeline = dream.settings.generator
        raise dream.settings.error("generator", f"expected {{train: small}} to train one, got {pipeline!r}")
    return found


def _imagination(config_files: Sequence[str], overrides: Sequence[str]) -> Experiment:
    """An experiment with a section `dream`, whose built-in data is there."""
    experiment = load_config(config_files, overrides)
    _ = experiment.dream  # InputError if missing
    experiment.data.ensure()
    return experiment


@files.looked_once()
def dry_run(config_files: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """What `openood-dream imagine` would draw, and how long it would take here, in words.

    Args:
        config_files: config files.
        overrides: words laid over them.
    """
    return _imagination(config_files, overrides).imagination.forecast()


@files.looked_once()
def plot(
    kind: str,
    config_files: Sequence[str],
    overrides: Sequence[str],
    classes: Sequence[str],
    out: Path | None,
    outliers: Sequence[str] = (),
    **options: Any,
) -> Path:
    """Draws a figure with all the stages that it needs.

    Args:
        kind: embeddings, grid or line: a function of reports/gallery.py.
        config_files: config files.
        overrides: words laid over them.
        classes: names of the classes to show; none leaves the choice to the figure.
        out: PNG to write; None: in the config's root, named after kind, classes and options.
        outliers: what is drawn beside each other: each a `dream.outliers.method`, or a config file that is laid over
            the others; none means the config as it is. A line shows one alone.
        options: further arguments of the figure.

    Returns:
        The path of the PNG.

    Raises:
        InputError: `out` does not end in .png or cannot be written, the config or its data are not fit for it, or
            matplotlib is not installed.
    """
    check_installed("plot", "matplotlib")
    if out is not None and out.suffix != ".png":
        raise InputError(f"--out: expected a file name that ends in .png, got {str(out)!r}")
    experiments = {}
    for name in outliers or [""]:
        if name and not Path(name).suffix:
            check_name("--outliers", name, SAMPLERS)
        words = ["--dream.outliers.method", name] if name in SAMPLERS else []
        layers = [*config_files, *([name] if name and not words else [])]
        experiments[name] = _imagination(layers, [*overrides, *words])
    first = next(iter(experiments.values()))
    if out is None:
        words = [kind, *classes, *(value for value in options.values() if value != "pca")]
        out = Path(first.run.root or "results") / ("-".join(re.sub(r"[^\w.]+", "_", word) for word in words) + ".png")
    with artifacts.writing_in(out.parent):
        shown = first if kind == "line" else experiments
        png = getattr(gallery, kind)(shown, classes, **options)
        with files.replacing(out) as work:
            work.write_bytes(png)
    return out
