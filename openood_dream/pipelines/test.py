"""Scoring trained networks: OpenOOD's pipeline `test_ood`, and many detectors with one pass over the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from openood_dream.datasets.imglist import list_identity
from openood_dream.datasets.loaders import Data
from openood_dream.datasets.settings import SplitSettings
from openood_dream.device import pick_device
from openood_dream.errors import InputError
from openood_dream.evaluators.evaluate import evaluate
from openood_dream.evaluators.passes import Passes, passes_dir
from openood_dream.experiment import Experiment
from openood_dream.networks.factory import get_network, load_weights
from openood_dream.pipelines.train import TRAINED
from openood_dream.postprocessors.base import find_postprocessor
from openood_dream.store import artifacts, files

SCORED = "evaluate.json"  # the record of a finished evaluation


@files.looked_once()
def test(experiment: Experiment) -> Path:
    """Scores `network.checkpoint` with `postprocessor` on `ood_dataset`.

    Returns:
        The folder with config.yml, ood.csv and scores/.

    Raises:
        InputError: something of the config is missing or impossible, or the folder holds scores of another checkpoint
            and `merge_option` is not `merge`.
    """
    check_scoring(experiment)
    out, network = experiment.run.folder, experiment.network
    if network.checkpoint is None:
        raise network.error("checkpoint", "missing; give the file of a trained network, or --network.checkpoint")
    experiment.data.ensure()
    checkpoint = Path(network.checkpoint)
    passes = _passes(experiment, experiment.data, checkpoint)
    inputs, record = {"checkpoint": passes.checkpoint}, out / SCORED
    if (out / "ood.csv").exists() and experiment.run.merge_option != "merge":
        if not record.exists() or files.read_record(record)["inputs"] != inputs:
            raise InputError(
                f"{out}: holds scores of another checkpoint; choose another output_dir or mark, or --merge_option merge"
            )
    _evaluate(passes, experiment, out)
    files.write_json(record, {"hash": files.fingerprint(inputs), "inputs": inputs})
    return out


def check_scoring(experiment: Experiment) -> None:
    """Raises InputError where a setting that scoring needs is missing or impossible."""
    find_postprocessor(experiment.postprocessor, experiment.network.name)
    experiment.dataset.split("test")
    _ = experiment.ood_dataset  # InputError if missing


def score_run(folder: Path, experiments: list[Experiment], data: Data) -> None:
    """Scores a trained run with several detectors, with one pass over each data set for all.

    Args:
        folder: the run's; each detector gets a folder of its name in it. Scores that are up to date stay.
        experiments: the run's config with each of the detectors.
        data: the images, which are those of all the experiments.
    """
    if not _unscored(folder, experiments):
        return
    with artifacts.exclusive(folder):
        todo = _unscored(folder, experiments)  # another process may have scored some while this one waited
        if not todo:
            return
        passes = _passes(todo[0].experiment, data, folder / "best.ckpt", folder / "passes")
        for experiment, out, inputs in todo:
            (out / SCORED).unlink(missing_ok=True)
            _evaluate(passes, experiment, out)
            files.write_json(out / SCORED, {"hash": files.fingerprint(inputs), "inputs": inputs})


def images_identity(experiment: Experiment) -> dict[str, Any]:
    """What decides about scores besides network and detector: the test images, by data set.

    Raises:
        InputError: a list is missing, or an image that it names.
    """
    return {"ood": _ood_identity(experiment), "test": identity_of(experiment.dataset.split("test"))}


def identity_of(split: SplitSettings) -> str:
    """A fingerprint of a list and its images; nothing is decoded. InputError where one of them is missing."""
    return list_identity(split.imglist_pth, split.data_dir, split.key("imglist_pth"))


class _Unscored(NamedTuple):
    """A detector whose scores of a run are missing or out of date."""

    experiment: Experiment
    out: Path
    inputs: dict[str, Any]


def _unscored(folder: Path, experiments: list[Experiment]) -> list[_Unscored]:
    run, todo = files.read_record(folder / TRAINED)["hash"], []
    for experiment in experiments:
        detector = experiment.postprocessor
        inputs = {"run": run, "postprocessor": detector.model_dump(), **images_identity(experiment)}
        done = folder / detector.name / SCORED
        if not (done.exists() and files.read_record(done)["hash"] == files.fingerprint(inputs)):
            todo.append(_Unscored(experiment, done.parent, inputs))
    return todo


def _ood_identity(experiment: Experiment) -> dict[str, str]:
    """A fingerprint of each OOD test set and covariate-shifted set, by group/name."""
    data = experiment.data
    sets = [*data.ood_sets(), *(("csid", name) for name in data.csid_sets())]
    return {f"{group}/{name}": identity_of(data.split("ood_dataset", group, name)) for group, name in sets}


def _passes(experiment: Experiment, data: Data, checkpoint: Path, cache_dir: Path | None = None) -> Passes:
    """The passes of a network with the weights of a checkpoint, beside which they are kept unless `cache_dir` is given."""
    settings = experiment.network.model_copy(update={"pretrained": False})
    dataset = experiment.dataset
    net = get_network(settings, image_size=dataset.image_size, num_classes=dataset.num_classes)
    load_weights(net, checkpoint)
    about = {key: getattr(settings, key, None) for key in ("name", "args")}
    device = pick_device(experiment.run.device)
    cache_dir = cache_dir or passes_dir(checkpoint, experiment.run.folder)
    return Passes(net, data, device, network=about, checkpoint=checkpoint, cache_dir=cache_dir)


def _evaluate(passes: Passes, experiment: Experiment, out: Path) -> None:
    scheme = experiment.evaluator.ood_scheme
    evaluate(passes, experiment.postprocessor, out, config=experiment.to_dict(), scheme=scheme)
