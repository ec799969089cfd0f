"""OpenOOD's unified Evaluator, whose numbers its leaderboard holds, for any network of a config."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from openood_dream.datasets.imglist import read_imglist
from openood_dream.device import pick_device
from openood_dream.errors import InputError, check_name
from openood_dream.evaluators.evaluate import write_files
from openood_dream.evaluators.metrics import Scores
from openood_dream.experiment import Experiment
from openood_dream.openood import compat, factories, host, registry

API = "openood.evaluation_api"
NAMES = {"temperature_scaling": "temp_scaling"}  # what evaluation_api calls otherwise
GROUPS = {"near": "nearood", "far": "farood"}
LAYOUT = (
    "benchmark_imglist/, images_classic/ and, for ImageNet, images_largescale/, as OpenOOD's download script makes it"
)
Lists = Mapping[str, Any]  # evaluation_api's description of a benchmark


def evaluate(experiment: Experiment) -> Path:
    """Scores `network.checkpoint` with `postprocessor` by OpenOOD's Evaluator; writes ood.csv, scores/ and config.yml.

    Its test sets, images and lists are OpenOOD's own, below `data_root`, whatever `ood_dataset` says; images are
    preprocessed as the config's network has learned them. With `evaluator.ood_scheme: fsood` there is fsood.csv too.
    Nothing is downloaded.

    Args:
        experiment: the config; `dataset.name` says which of OpenOOD's benchmarks.

    Returns:
        `output_dir`.

    Raises:
        InputError: OpenOOD is not installed, its Evaluator does not know the benchmark or the postprocessor, its data
            are not there, or the config is not fit for it; nothing was written then.
    """
    if not compat.installed("openood"):
        raise InputError(f"--evaluator openood: OpenOOD is not installed; {registry.INSTALL}")
    for section in (*host.NEEDED, "postprocessor"):
        if not experiment.has(section):
            raise InputError(f"config: {section}: missing; add a config file that sets it")
    checkpoint = experiment.network.checkpoint
    if checkpoint is None or not Path(checkpoint).is_file():
        raise experiment.network.error("checkpoint", f"expected the file of a trained network, got {checkpoint!r}")
    host.check_output(experiment)
    cpu = pick_device(experiment.run.device).type != "cuda" or not experiment.run.num_gpus
    whole = host.complete(experiment)
    whole["network"] |= {"pretrained": True, "num_gpus": 0 if cpu else 1}
    full = experiment.evaluator.ood_scheme == "fsood"
    with contextlib.redirect_stdout(sys.stderr), host.registration(cpu):
        lists = _benchmark(experiment, full)
        _check_postprocessor(experiment)
        with _only(lists, str(experiment.dataset.name)):
            evaluator = _made(whole, experiment)
            tables = {"fsood.csv": evaluator.eval_ood(fsood=True)} if full else {}
            tables["ood.csv"] = evaluator.eval_ood()
    config = experiment.to_dict() | _evaluated(experiment, lists)
    rows = {name: [(str(i), row.to_numpy() / 100) for i, row in table.iterrows()] for name, table in tables.items()}
    write_files(experiment.run.folder, config, _scores(evaluator, str(experiment.dataset.name)), rows)
    return experiment.run.folder


def _benchmark(experiment: Experiment, full: bool) -> Lists:
    """OpenOOD's description of a benchmark, without the sets that are not asked for; checks that its data are there."""
    known = import_module(f"{API}.datasets").DATA_INFO
    name = experiment.dataset.name
    check_name(experiment.where("dataset.name"), name, known)
    lists = copy.deepcopy(known[name])
    lists.setdefault("csid", {"datasets": []})
    if full and not lists["csid"]["datasets"]:
        raise experiment.error("evaluator.ood_scheme", f"OpenOOD's benchmark {name} has no covariate-shifted images")
    if not full:
        lists["csid"]["datasets"] = []
    if experiment.dataset.num_classes != lists["num_classes"]:
        found = experiment.dataset.num_classes
        raise experiment.error("dataset.num_classes", f"OpenOOD's {name} has {lists['num_classes']}, got {found}")
    root = Path(experiment.run.data_root)
    for split in _splits(lists):
        imglist = root / split["imglist_path"]
        if not imglist.is_file():
            raise experiment.error("data_root", f"{imglist} is missing; the Evaluator needs {LAYOUT}")
        image = root / split["data_dir"] / read_imglist(imglist)[0][0]
        if not image.is_file():
            raise experiment.error("data_root", f"{image}, of {imglist}, is missing; the Evaluator needs {LAYOUT}")
    return lists


def _splits(lists: Lists) -> Iterator[Mapping[str, str]]:
    """All that says where the images of one set are."""
    yield from lists["id"].values()
    yield lists["ood"]["val"]
    for group in (lists["csid"], *(lists["ood"][kind] for kind in GROUPS)):
        yield from (group[name] for name in group["datasets"])


def _check_postprocessor(experiment: Experiment) -> None:
    """Raises InputError for a postprocessor that evaluation_api lacks."""
    known = import_module(f"{API}.postprocessor").postprocessors
    ours = {api: name for name, api in NAMES.items()}
    where = experiment.where("postprocessor.name")
    check_name(where, experiment.postprocessor.name, [ours.get(one, one) for one in known])


@contextlib.contextmanager
def _only(lists: Lists, name: str) -> Iterator[None]:
    """evaluation_api reads these lists inside the block, and downloads nothing."""
    evaluator, datasets = import_module(f"{API}.evaluator"), import_module(f"{API}.datasets")
    with mock.patch.dict(datasets.DATA_INFO, {name: lists}):
        with compat.replaced(evaluator, data_setup=lambda *args: None):
            yield


def _made(whole: dict[str, Any], experiment: Experiment) -> Any:
    """The Evaluator of a complete config, its detector fitted and, where APS_mode says so, its hyperparameters chosen."""
    from openood.evaluation_api import Evaluator
    from openood.networks import get_network
    from openood.postprocessors.info import num_classes_dict
    from openood.preprocessors.utils import get_preprocessor
    from openood.utils import Config as HostConfig

    config: Any = HostConfig(whole)
    factories.check_network(get_network, config.network)
    name = NAMES.get(config.postprocessor.name, config.postprocessor.name)
    with mock.patch.dict(num_classes_dict, {config.dataset.name: config.dataset.num_classes}):
        post = import_module(f"{API}.postprocessor").postprocessors[name](config)
    post.APS_mode = bool(config.postprocessor.get("APS_mode"))
    post.hyperparam_search_done = False
    return Evaluator(
        get_network(config.network).eval(),
        id_name=config.dataset.name,
        data_root=experiment.run.data_root,
        preprocessor=get_preprocessor(config, "test"),
        postprocessor_name=name,  # by which it wraps the network for react, ash, ...
        postprocessor=post,
        batch_size=experiment.at("ood_dataset.batch_size") or 200,
        num_workers=experiment.at("num_workers") or 0,
    )


def _scores(evaluator: Any, id_name: str) -> dict[str, Scores]:
    """What the Evaluator's detector said of each test set."""
    found = {id_name: evaluator.scores["id"]["test"]}
    found |= {name: scores for name, scores in evaluator.scores.get("csid", {}).items() if scores is not None}
    ood = {name: scores for kind in GROUPS for name, scores in evaluator.scores["ood"][kind].items()}
    made = {name: _as_scores(*scores) for name, scores in found.items()}
    return made | {name: _as_scores(pred, conf, np.full_like(label, -1)) for name, (pred, conf, label) in ood.items()}


def _as_scores(pred: Any, conf: Any, label: Any) -> Scores:
    return Scores(np.asarray(pred).astype(np.int64), np.asarray(conf), np.asarray(label).astype(np.int64))


def _evaluated(experiment: Experiment, lists: Lists) -> dict[str, Any]:
    """The sections of the config that say what was evaluated, and by whom."""
    root = Path(experiment.run.data_root)

    def split(one: Mapping[str, str]) -> dict[str, str]:
        return {"data_dir": str(root / one["data_dir"]), "imglist_pth": str(root / one["imglist_path"])}

    def group(of: Mapping[str, Any]) -> dict[str, Any]:
        names: Iterable[str] = of["datasets"]
        return {"datasets": [*names], **{name: split(of[name]) for name in names}}

    ood = {GROUPS[kind]: group(lists["ood"][kind]) for kind in GROUPS} | {"val": split(lists["ood"]["val"])}
    dataset = experiment.to_dict()["dataset"]
    tests = {name: {**dataset.get(name, {}), **split(one)} for name, one in lists["id"].items()}
    evaluator = {"name": "openood", "ood_scheme": "ood"}  # what counts shifted images stands in fsood.csv
    return {"dataset": {**dataset, **tests}, "ood_dataset": ood, "evaluator": evaluator}
