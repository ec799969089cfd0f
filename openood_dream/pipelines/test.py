"""Scoring trained networks: OpenOOD's pipeline `test_ood`, and many detectors with one pass over the images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from openood_dream import plugins
from openood_dream._version import __version__
from openood_dream.datasets.imglist import list_identity
from openood_dream.datasets.loaders import Data
from openood_dream.datasets.settings import SplitSettings
from openood_dream.device import pick_device
from openood_dream.errors import InputError
from openood_dream.evaluators.evaluate import evaluate
from openood_dream.evaluators.passes import Passes, passes_dir
from openood_dream.experiment import Experiment
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import check_network, get_network
from openood_dream.pipelines.identity import first_difference, other_value
from openood_dream.postprocessors.known import POSTPROCESSORS, find_postprocessor
from openood_dream.reports.records import CONFIG, SCORED, TRAINED, read_config, read_scoring, read_training
from openood_dream.store import artifacts, files
from openood_dream.store.steps import Step, tell


@files.looked_once()
def test(experiment: Experiment) -> Path:
    """Scores `network.checkpoint` with `postprocessor` on `ood_dataset`.

    Returns:
        The folder with config.yml, ood.csv and scores/; what the checkpoint's training recorded stands in evaluate.json.

    Raises:
        InputError: something of the config is missing or impossible, or the folder holds other scores.
    """
    check_scoring(experiment)
    out, network = experiment.run.folder, experiment.network
    if network.checkpoint is None:
        raise network.error("checkpoint", "missing; give the file of a trained network, or --network.checkpoint")
    experiment.data.ensure()
    checkpoint = Path(network.checkpoint)
    passes = make_passes(experiment, experiment.data, checkpoint)
    inputs = {"checkpoint": passes.checkpoint, **_scoring_inputs(experiment)}
    if _scored(out, inputs, experiment):
        return out
    if (out / "ood.csv").exists() and not _interrupted(out, experiment):
        raise InputError(
            f"{out}: has scores without a record of what was scored; choose another --output_dir or --mark"
        )
    _evaluate(passes, experiment, out)
    trained = checkpoint.with_name(TRAINED)
    _write_record(out, inputs, **({"trained": read_training(trained)} if trained.is_file() else {}))
    return out


def check_scoring(experiment: Experiment) -> None:
    """Raises InputError where a setting that scoring needs is missing or impossible."""
    dataset = experiment.dataset
    find_postprocessor(experiment.postprocessor, experiment.network.name)
    dataset.split("test")
    _ = experiment.ood_dataset  # InputError if missing
    check_network(experiment.network, **dataset.shape)


def score_run(folder: Path, experiments: list[Experiment], data: Data) -> None:
    """Scores a trained run with several detectors, with one pass over each data set for all.

    Args:
        folder: the run's; each detector gets a folder of its name in it. Scores that are there stay.
        experiments: the run's config with each of the detectors.
        data: the images, which are those of all the experiments.

    Raises:
        InputError: a detector's folder holds scores of another detector of its name, or of other images.
    """
    if not _unscored(folder, experiments):
        tell(Step("score", folder))
        return
    with artifacts.exclusive(folder):
        todo = _unscored(folder, experiments)  # another process may have scored some while this one waited
        if not todo:
            return
        tell(Step("score"))
        start = time.perf_counter()
        passes = make_passes(todo[0].experiment, data, folder / "best.ckpt", folder / "passes")
        for experiment, out, inputs in todo:
            _evaluate(passes, experiment, out)
            _write_record(out, inputs)
        tell(Step("score", folder, time.perf_counter() - start))


def is_scored(folder: Path, experiments: list[Experiment]) -> bool:
    """Whether a run is finished and has the scores of all of some detectors.

    Args:
        folder: the run's.
        experiments: the run's config with each of the detectors.

    Raises:
        InputError: a detector's folder holds other scores.
    """
    return (folder / TRAINED).exists() and not _unscored(folder, experiments)


def images_identity(experiment: Experiment) -> dict[str, Any]:
    """What decides about scores besides network and detector: the test images, by data set, and those of a search.

    Raises:
        InputError: a list is missing, or an image that it names.
    """
    found: dict[str, dict[str, str]] = {
        "ood_dataset": _ood_identity(experiment),
        "dataset": {"test": identity_of(experiment.dataset.split("test"))},
    }
    if experiment.postprocessor.searches:
        found["ood_dataset"]["val"] = identity_of(experiment.data.split("ood_dataset", "val"))
        found["dataset"]["val"] = identity_of(experiment.dataset.split("val"))
    return found


def identity_of(split: SplitSettings) -> str:
    """A fingerprint of a list and its images; nothing is decoded. InputError where one of them is missing."""
    return list_identity(split.imglist_pth, split.data_dir, split.key("imglist_pth"))


class _Unscored(NamedTuple):
    """A detector whose scores of a run are missing or out of date."""

    experiment: Experiment
    out: Path
    inputs: dict[str, Any]


def _unscored(folder: Path, experiments: list[Experiment]) -> list[_Unscored]:
    run, todo = read_training(folder / TRAINED)["hash"], []
    for experiment in experiments:
        out, inputs = folder / experiment.postprocessor.name, {"run": run, **_scoring_inputs(experiment)}
        if not _scored(out, inputs, experiment):
            todo.append(_Unscored(experiment, out, inputs))
    return todo


def _scoring_inputs(experiment: Experiment) -> dict[str, Any]:
    """What decides about scores besides the network."""
    name = experiment.postprocessor.name
    return {
        "postprocessor": experiment.postprocessor.model_dump() | plugins.identity(POSTPROCESSORS[name]),
        "evaluator": {"ood_scheme": experiment.evaluator.ood_scheme},
        **images_identity(experiment),
    }


def _scored(out: Path, inputs: dict[str, Any], experiment: Experiment) -> bool:
    """Whether a folder has the scores that `inputs` determine; InputError where it has others."""
    record = out / SCORED
    if not record.exists():
        return False
    there = read_scoring(record)["inputs"]
    found = first_difference({key: there.get(key) for key in inputs}, inputs)
    if found is None:
        return True
    key, old, new = found
    if key in ("run", "checkpoint"):
        where, what = experiment.where("network.checkpoint"), "of another checkpoint"
    elif key.startswith(("ood_dataset", "dataset")):
        where, what = experiment.where(key), "of other images"
    else:
        key, what = other_value(key, old, new)
        where = experiment.where(key)
    raise InputError(
        f"{where}: {out} holds scores {what}; choose another --output_dir, --root or --mark, or delete that folder"
    )


def _interrupted(out: Path, experiment: Experiment) -> bool:
    """Whether scores without a record are of an evaluation of this very config that was stopped before it wrote that."""
    try:
        return read_config(out / CONFIG) == experiment.to_dict()
    except ValueError:
        return False


def _write_record(out: Path, inputs: dict[str, Any], **more: Any) -> None:
    about = {"hash": files.fingerprint(inputs), "inputs": inputs, "code": __version__, **more}
    files.write_json(out / SCORED, about)


def _ood_identity(experiment: Experiment) -> dict[str, str]:
    """A fingerprint of each OOD test set and covariate-shifted set, by group.name."""
    data = experiment.data
    sets = [*data.ood_sets(), *(("csid", name) for name in data.csid_sets())]
    return {f"{group}.{name}": identity_of(data.split("ood_dataset", group, name)) for group, name in sets}


def make_passes(experiment: Experiment, data: Data, checkpoint: Path, cache_dir: Path | None = None) -> Passes:
    """The passes of a network with the weights of a checkpoint.

    Args:
        experiment: says which network, and where it runs.
        data: the data sets.
        checkpoint: file of the weights.
        cache_dir: folder that passes are kept in; beside the checkpoint if not given.

    Raises:
        InputError: the network or its weights are not fit for it.
    """
    settings = experiment.network.model_copy(update={"pretrained": False})
    dataset = experiment.dataset
    net = get_network(settings, **dataset.shape)
    load_weights(net, checkpoint)
    about = {key: getattr(settings, key, None) for key in ("name", "args")}
    device = pick_device(experiment.run.device)
    cache_dir = cache_dir or passes_dir(checkpoint, experiment.run.folder) if experiment.evaluator.passes else None
    return Passes(net, data, device, network=about, checkpoint=checkpoint, cache_dir=cache_dir)


def _evaluate(passes: Passes, experiment: Experiment, out: Path) -> None:
    scheme = experiment.evaluator.ood_scheme
    evaluate(passes, experiment.postprocessor, out, config=experiment.to_dict(), scheme=scheme)
