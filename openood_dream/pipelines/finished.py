"""A finished training, or its scoring, found again by its folder: config, checkpoint, detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from openood_dream.config.tree import Origins, lookup
from openood_dream.errors import InputError, check_name
from openood_dream.experiment import Experiment, load_config
from openood_dream.postprocessors.base import POSTPROCESSORS
from openood_dream.reports.records import CONFIG, SCORED, STARTED, TRAINED, read_config, read_scoring, read_training
from openood_dream.store import files

BEST = "best.ckpt"
DEFAULT = "ebo"
EXPECTED = f"expected the folder of a finished training ({CONFIG} and {BEST}), or of its scores"


class Finished(NamedTuple):
    """A trained network with the settings that it is scored with.

    Attributes:
        folder: the training's, or that of scores whose training is not known.
        checkpoint: the weights.
        experiment: the config of the folder that was named, with the detector's section `postprocessor`.
    """

    folder: Path
    checkpoint: Path
    experiment: Experiment


def find_finished(run: Path, postprocessor: str | None = None, device: str | None = None) -> Finished:
    """The network of a run, and a detector for it.

    The detector's settings are those that it was scored with, where it was; then those of the config; then those of the
    shipped file, of which `APS_mode` is left to the config.

    Args:
        run: the folder of a finished training, or of its scores.
        postprocessor: the detector's name; None takes the one of the scores, and ebo for a training.
        device: where to compute instead of where the config says.

    Raises:
        InputError: the folder is none of a finished run, or the detector is not known.
    """
    values, folder, checkpoint = _opened(run)
    own = lookup(values, ("postprocessor", "name"))
    name = postprocessor or (own if (run / "ood.csv").exists() and isinstance(own, str) else DEFAULT)
    check_name("postprocessor", name, POSTPROCESSORS)
    origins = Origins()
    for key in values:
        origins.set((key,), str(run / CONFIG))
    changes = {"postprocessor": _section(name, values, folder)} | ({} if device is None else {"device": device})
    return Finished(folder, checkpoint, Experiment({**values, **changes}, origins))


def _opened(run: Path) -> tuple[dict[str, Any], Path, Path]:
    """The config of a run, the folder that its detectors are recorded in, and its checkpoint."""
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; {EXPECTED}")
    if not (run / TRAINED).exists() and (run / STARTED).exists():
        raise InputError(f"{run}: its training is not finished; run its command again first")
    if not (run / CONFIG).exists():
        raise InputError(f"{run}: has no {CONFIG}; {EXPECTED}")
    values = read_config(run / CONFIG)
    if (run / BEST).exists() or (run / TRAINED).exists():
        folder, checkpoint = run, run / BEST
    elif (run / SCORED).exists():
        folder, checkpoint = _of_scores(run, values)
    elif (run / "ood.csv").exists():  # OpenOOD's
        folder, checkpoint = run, _named(run, values)
    else:
        raise InputError(f"{run}: has no {BEST}; {EXPECTED}")
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no such checkpoint; restore it, or train again")
    return values, folder, checkpoint


def _of_scores(run: Path, values: Mapping[str, Any]) -> tuple[Path, Path]:
    """The folder and the checkpoint of the network that was scored."""
    inputs = read_scoring(run / SCORED)["inputs"]
    if "run" not in inputs:
        checkpoint = _named(run, values)
        if checkpoint.is_file() and files.sha256(checkpoint) != inputs.get("checkpoint"):
            raise InputError(f"{run}: has scores of other weights than {checkpoint}; score that again")
        return run, checkpoint
    trained = run.parent / TRAINED
    if not trained.is_file() or read_training(trained)["hash"] != inputs["run"]:
        raise InputError(f"{run}: has scores of another training than {run.parent}; score that again")
    return run.parent, run.parent / BEST


def _named(run: Path, values: Mapping[str, Any]) -> Path:
    """The checkpoint that a config names."""
    found = lookup(values, ("network", "checkpoint"))
    if not isinstance(found, str):
        raise InputError(f"{run / CONFIG}: network.checkpoint: missing; expected the file of the weights")
    return Path(found)


def _section(name: str, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The section `postprocessor` of a detector."""
    given = values.get("postprocessor")
    scored = folder / name / SCORED
    if scored.is_file() and (folder / name / CONFIG).is_file():
        trained = folder / TRAINED
        if trained.is_file() and read_scoring(scored)["inputs"].get("run") == read_training(trained)["hash"]:
            given = read_config(folder / name / CONFIG).get("postprocessor")
    if isinstance(given, dict) and given.get("name") == name:
        return given
    shipped = load_config([f"postprocessors/{name}.yml"], ["--output_dir", str(folder)]).at("postprocessor")
    search = lookup(given, ("APS_mode",))
    return shipped if search is None else shipped | {"APS_mode": search}
