"""What determines a run, what its folder records of that, and the message about a folder that holds another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openood_dream import plugins
from openood_dream._version import __version__
from openood_dream.config.tree import MISSING, flat
from openood_dream.datasets.settings import IMAGINED
from openood_dream.dream.samplers import SAMPLERS
from openood_dream.errors import InputError, show
from openood_dream.experiment import Experiment
from openood_dream.reports.records import STARTED, TRAINED, read_training
from openood_dream.store import files
from openood_dream.store.artifacts import Missing, reusing_only
from openood_dream.trainers.known import TRAINERS

OUTLIERS = "outliers"  # the input that says which outliers a network learned from


def run_inputs(experiment: Experiment) -> dict[str, Any]:
    """All of a config that determines the weights at the end of a training, but for the outliers' content.

    Returns:
        Plain values below the names of their config keys; a list of images stands as the fingerprint of its images.

    Raises:
        InputError: a list is missing, or an image that it names.
    """
    data, dataset, trainer = experiment.data, experiment.dataset, experiment.trainer
    train = dataset.split("train")
    batches = {"batch_size": train.needs_batch_size(), "drop_last": train.drop_last}
    splits: dict[str, Any] = {
        "train": {"images": data.identity("dataset", "train"), **batches},
        "val": {"images": data.identity("dataset", "val")},
    }
    if TRAINERS[trainer.name].auxiliary:
        auxiliary = dataset.split("oe")
        images = IMAGINED if auxiliary.imagined else data.identity("dataset", "oe")
        splits["oe"] = {"images": images, "batch_size": auxiliary.needs_batch_size(), "drop_last": auxiliary.drop_last}
        mixture = data.auxiliary_transform.mixture
        splits["oe"] |= mixture.identity if mixture else {}
    return {
        "dataset": {
            "name": dataset.name,
            "num_classes": dataset.num_classes,
            **data.transform.test_identity,
            **splits,
        },
        "preprocessor": data.transform.augmentation_identity,
        "network": network_identity(experiment),
        "trainer": trainer.model_dump(exclude={"implementation"}) | plugins.identity(TRAINERS[trainer.name]),
        "optimizer": experiment.optimizer.model_dump(),
        "precision": experiment.run.precision,
        "compile": experiment.run.compile,
        "seed": experiment.run.seed,
    }


def network_identity(experiment: Experiment) -> dict[str, Any]:
    """What of `network` decides about the weights that training begins with: a checkpoint by its content.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    network = experiment.network
    about = network.model_dump(exclude={"num_gpus", "checkpoint"})
    if not network.pretrained or network.checkpoint is None:
        return about
    try:
        return about | {"checkpoint": files.sha256(network.checkpoint)}
    except OSError as error:
        text = (
            f"cannot read {network.checkpoint!r} ({error.strerror}), the weights that training begins with; check the "
            "path, or make them first"
        )
        raise network.error("checkpoint", text) from None


def imagines(experiment: Experiment) -> bool:
    """Whether a run learns from what the section `dream` describes."""
    cls = TRAINERS[experiment.trainer.name]
    return cls.needs_teacher or cls.auxiliary and experiment.dataset.split("oe").imagined


def imagination_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that a run's outliers are imagined with; empty where it learns from no imagined ones."""
    if not imagines(experiment):
        return {}
    settings = experiment.dream.model_dump(exclude={"cache_dir"})
    settings["outliers"] |= plugins.identity(SAMPLERS[experiment.dream.outliers.method])
    return settings


def run_record(experiment: Experiment, outliers: Any) -> dict[str, Any]:
    """What a run's folder records of what determines it.

    Args:
        experiment: the config.
        outliers: what identifies the outliers that the network learns from (JSON-serialisable).

    Returns:
        `hash` of the `inputs`; `dream`, the settings that the outliers were imagined with, which say in words what the
        fingerprint among the inputs stands for; and `code`, the version that trains.
    """
    inputs = run_inputs(experiment) | {OUTLIERS: outliers}
    dream = imagination_settings(experiment)
    return {"hash": files.fingerprint(inputs), "inputs": inputs, "dream": dream, "code": __version__}


def recorded(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """The record of the run in a folder, or None; and whether the run is finished."""
    for name in (TRAINED, STARTED):
        if (folder / name).exists():
            return read_training(folder / name), name == TRAINED
    return None, False


def check_folder(experiment: Experiment) -> None:
    """Checks, before anything is imagined, that the folder of a run holds no other one.

    Raises:
        InputError: it does; the message names the first key that differs.
    """
    folder = experiment.run.folder
    record, _ = recorded(folder)
    if record is None:
        refuse_strangers(folder)
        return
    inputs = run_inputs(experiment)
    there = {key: value for key, value in _inputs(record).items() if key != OUTLIERS}
    if found := first_difference(there, inputs):
        raise other_run(folder, experiment, *found)
    found = first_difference({"dream": record.get("dream", {})}, {"dream": imagination_settings(experiment)})
    if found and not _same_outliers(experiment, record):
        raise other_run(folder, experiment, *found)


def check_record(folder: Path, experiment: Experiment, record: Mapping[str, Any]) -> bool:
    """Whether the run that `record` describes is finished in a folder.

    Args:
        folder: the run's.
        experiment: its config, for messages.
        record: what `run_record` gave.

    Raises:
        InputError: the folder holds another run; the message names the first key that differs.
    """
    there, finished = recorded(folder)
    if there is None:
        refuse_strangers(folder)
        return False
    if there["hash"] == record["hash"]:
        return finished
    old, new = ({"dream": one.get("dream", {}), **_inputs(one)} for one in (there, record))
    outliers = ("dataset.oe.images", _inputs(there).get(OUTLIERS), record["inputs"][OUTLIERS])
    raise other_run(folder, experiment, *(first_difference(old, new) or outliers))


def refuse_strangers(folder: Path) -> None:
    """Raises InputError where a folder without our record has weights."""
    if (folder / "best.ckpt").exists():
        raise InputError(
            f"{folder}: has weights that this program did not train; choose another --output_dir, --root or --exp_name, "
            "or move them away"
        )


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first dotted key in which two nested mappings differ, and its two values; MISSING for one that has no such key.

    Args:
        there: a mapping.
        here: another one.
    """
    old, new = dict(flat(there)), dict(flat(here))
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key, MISSING) != new.get(key, MISSING):
            return key, old.get(key, MISSING), new.get(key, MISSING)
    return None


def other_run(folder: Path, experiment: Experiment, key: str, there: Any, here: Any) -> InputError:
    """The InputError about a folder that holds a run of another configuration.

    Args:
        folder: the run's.
        experiment: the config that is asked for.
        key: the first key in which they differ.
        there: its value in the folder's run.
        here: its value in the config.
    """
    if key.endswith(".images"):
        key, what = key.removesuffix(".images"), "of other images"
    else:
        key, what = other_value(key, there, here)
    return InputError(
        f"{experiment.where(key)}: {folder} holds a run {what}; choose another --output_dir, --root or --exp_name, or "
        "delete that folder"
    )


def other_value(key: str, there: Any, here: Any) -> tuple[str, str]:
    """The key that a difference is about, and how it goes on after "holds a run" or "holds scores".

    Args:
        key: the dotted key, which plugins.identity may have made.
        there: its value in the folder.
        here: its value in the config.
    """
    if key.endswith(".plugin"):
        return key.removesuffix(".plugin"), "of another version of the plugin file that defines it"
    return key, f"with {value_word(there)}, not {value_word(here)}"


def value_word(value: Any) -> str:
    """A value of `first_difference` as messages show it."""
    return "nothing" if value is MISSING else show(value)


def _inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    inputs = record.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _same_outliers(experiment: Experiment, record: Mapping[str, Any]) -> bool:
    """Whether a config whose section `dream` reads otherwise has the images that a run learned from all the same."""
    if TRAINERS[experiment.trainer.name].needs_teacher:
        return False
    try:
        with reusing_only():
            return experiment.imagination.training_images().identity == _inputs(record).get(OUTLIERS)
    except Missing:
        return False
