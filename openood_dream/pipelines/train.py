"""Training one network: OpenOOD's pipelines `train` and `train_oe`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.datasets.images import ImageList, loader, placed
from openood_dream.datasets.overlaps import overlaps
from openood_dream.datasets.settings import IMAGINED, PREPROCESSORS
from openood_dream.device import dtype_name, enough_memory
from openood_dream.dream.images import imagined_label, list_label, load_latents
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.samplers import get_sampler
from openood_dream.errors import check_name, warn
from openood_dream.experiment import Experiment
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import check_network, get_network
from openood_dream.networks.fast import WHITENED
from openood_dream.networks.features import accuracy
from openood_dream.networks.generative.network import Generative, pixel_probability
from openood_dream.networks.precision import measured_dtype
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.parallel.processes import Processes, is_main_process, joined, main_process_only
from openood_dream.pipelines.identity import check_folder, check_record, run_record
from openood_dream.reports.records import STARTED, TEACHER, TRAINED, read_training
from openood_dream.store import artifacts, files
from openood_dream.store.steps import Step, tell
from openood_dream.trainers import oal
from openood_dream.trainers.base import BaseTrainer, Plan, check_auxiliary, get_trainer
from openood_dream.trainers.known import TRAINERS
from openood_dream.trainers.loop import TRAINING, fit
from openood_dream.trainers.settings import OAL, DreamOOD, TeacherSettings


class OutlierData(NamedTuple):
    """What a trainer learns from besides the ID images."""

    label: str = "none"  # what they are, as tables say it: none, train_aux (a list's name), imagined (knn)
    loader: DataLoader | None = None  # auxiliary images, with training augmentation
    identity: Any = None  # what decides about them (JSON-serialisable)
    warnings: list[str] = []  # what is doubtful about them
    teacher_inputs: dict[str, Any] = {}  # further arguments of the trainer: teacher, embeddings, latents


@files.looked_once()
def train(experiment: Experiment) -> Path:
    """Trains the network of an experiment, imagining its outliers first where `dataset.oe.imglist_pth` is `imagined`.

    A finished run of the same inputs is reused, and one that was interrupted goes on, unless `resume: false`. Processes
    that torchrun or `accelerate launch` started train together, each with its share of every batch.

    Returns:
        The run's folder, with config.yml, best.ckpt, last_epoch*.ckpt and train.json.

    Raises:
        InputError: the config or its data are not fit for training, or the folder holds a run of another configuration.
    """
    cls = check_training(experiment)
    experiment.warn_unread()
    out = experiment.run.folder
    with joined(experiment.run.device) as processes, ExitStack() as lock:
        _check_shares(experiment, cls, processes)
        main_process_only(lambda: _prepare(experiment, cls, processes))
        outliers = outlier_data(experiment, cls)
        about = run_record(experiment, outliers.identity)
        if main_process_only(lambda: _reused(out, experiment, about)):
            return out
        lists = [experiment.data.images("dataset", split) for split in ("train", "val")]
        for images in [*lists, *([cast(ImageList, outliers.loader.dataset)] if outliers.loader else [])]:
            images.decode()  # a broken image is found before anything is written
            _warn_of(images.doubts())
        main_process_only(lambda: _warn_of(overlaps(experiment.data)))
        torch.manual_seed(experiment.run.seed)
        np.random.seed(experiment.run.seed)
        net = new_network(experiment).to(processes.device)

        def finished_meanwhile() -> bool:
            lock.enter_context(artifacts.exclusive(out))
            return _reused(out, experiment, about)

        if main_process_only(finished_meanwhile):
            return out
        if is_main_process():
            files.remove_unfinished(out)
            files.write_json(out / STARTED, about)
        if experiment.run.compile:
            net.compile()
        start = time.perf_counter()
        tell(Step("train"))
        history, remarks, precision = _fit(experiment, cls, net, outliers, about["hash"], processes)
        if is_main_process():
            record = {
                **about,
                "outlier_data": outliers.label,
                "warnings": [*outliers.warnings, *remarks],
                "seconds": round(time.perf_counter() - start, 3),
                "epochs": history,
                "precision": precision,
                "parameters": sum(p.numel() for p in net.parameters()),
            }
            _write_record(out, experiment, record)
            tell(Step("train", out, record["seconds"]))
            _warn(out, remarks)
        main_process_only(lambda: None)  # the others wait until all is written
    return out


def _reused(out: Path, experiment: Experiment, about: dict[str, Any]) -> bool:
    """Whether the run is finished already; says what is doubtful about it. InputError for another run in its folder."""
    finished = check_record(out, experiment, about)
    if finished:
        tell(Step("train", out))
        _warn(out, read_training(out / TRAINED).get("warnings") or [])
    return finished


def _warn_of(texts: Iterable[str]) -> None:
    for text in texts:
        warn(text)


def _warn(out: Path, texts: Iterable[str]) -> None:
    _warn_of(f"{out}: {text}" for text in texts)


def check_training(experiment: Experiment) -> type[BaseTrainer]:
    """The trainer of an experiment; InputError where a setting that training needs is missing or impossible."""
    dataset, settings, preprocessor = experiment.dataset, experiment.trainer, experiment.preprocessor
    cls = get_trainer(settings)
    check_name(preprocessor.where("name"), preprocessor.name, PREPROCESSORS)
    if preprocessor.views > 1 and not cls.views:
        raise preprocessor.error(
            "name", f"cider gives two views of each image, which {cls.name} does not take; choose base"
        )
    splits = ["train", "val", "oe"] if cls.auxiliary else ["train", "val"]
    for name in splits:
        dataset.split(name).needs_batch_size()
    if cls.auxiliary and dataset.split("oe").imagined:
        outliers = experiment.dream.outliers
        check_auxiliary(cls, IMAGINED, get_sampler(outliers).keeps_class, partial(outliers.error, "method"))
    _ = experiment.optimizer, experiment.run.folder, cls.needs_teacher and experiment.dream  # InputError if missing
    cls.check_plan(settings, training_plan(experiment))
    check_network(experiment.network, **dataset.shape)
    return cls


def training_plan(
    experiment: Experiment, labels: torch.Tensor | None = None, processes: Processes | None = None
) -> Plan:
    """What the training of an experiment is going to be.

    Args:
        experiment: says which.
        labels: the classes of the training images, where they are known.
        processes: those that train, where they are known.
    """
    dataset = experiment.dataset
    batch_size, views = dataset.split("train").needs_batch_size(), experiment.preprocessor.views
    return Plan(
        experiment.network,
        dataset.shape,
        experiment.optimizer.num_epochs,
        None if processes is None else views * processes.part_of(batch_size),
        None if labels is None else views * int(torch.bincount(labels, minlength=dataset.num_classes).min()),
    )


def new_network(experiment: Experiment) -> nn.Module:
    """The network of an experiment, with its first weights, on the CPU."""
    net = get_network(experiment.network, **experiment.dataset.shape)
    if isinstance(net, TimmNetwork) and net.adapts and not experiment.network.pretrained:
        images = experiment.data.images("dataset", "train")
        net.adapt(images.__getitems__(range(min(WHITENED, len(images))))["data"])
    return net


def outlier_label(experiment: Experiment) -> str:
    """What a network learns from besides ID images, as tables say it: none, train_aux (a list's name), imagined (knn)."""
    cls = TRAINERS[experiment.trainer.name]
    if isinstance(experiment.trainer, OAL):
        return oal.outlier_label(experiment.trainer.pairing)
    if not cls.auxiliary:
        return "none"
    split = experiment.dataset.split("oe")
    return imagined_label(experiment.dream.outliers.method) if split.imagined else list_label(Path(split.imglist_pth))


def outlier_data(experiment: Experiment, cls: type[BaseTrainer]) -> OutlierData:
    """What a trainer learns from besides the ID images; imagined first where the config asks for that.

    Args:
        experiment: says which data.
        cls: the trainer.

    Returns:
        The loader of auxiliary images, what identifies them, and what the trainer takes of a teacher.
    """
    if cls.needs_teacher:
        return teacher_data(experiment)
    if not cls.auxiliary:
        return OutlierData()
    dataset, data = experiment.dataset, experiment.data
    split = dataset.split("oe")
    warnings: list[str] = []
    if split.imagined:
        chosen = main_process_only(experiment.imagination.training_images)
        images, identity = data.open_auxiliary(chosen.imglist, chosen.data_dir), chosen.identity
        warnings = chosen.warnings
    else:
        images, identity = data.images("dataset", "oe"), data.identity("dataset", "oe")
    if cls.inliers:
        data.check_labels(images)
    if isinstance(experiment.trainer, DreamOOD) and experiment.trainer.pairs:
        check_pairs(images.labels, dataset.num_classes, experiment.trainer)
    batches = loader(
        images.augmented(),
        split.needs_batch_size(),
        shuffle=True,
        workers=dataset.num_workers,
        drop_last=split.drop_last,
    )
    return OutlierData(outlier_label(experiment), batches, identity, warnings)


def check_pairs(labels: torch.Tensor, classes: int, settings: DreamOOD) -> None:
    """Checks that auxiliary images are outliers and inliers.

    Args:
        labels: theirs (N,), -1 for outliers.
        classes: how many ID classes there are.
        settings: the trainer's, for the message.

    Raises:
        InputError: one of the kinds is missing, or a label is no class.
    """
    if not (labels < 0).any() or not (labels >= 0).any() or labels.max() >= classes:
        lowest, highest = int(labels.min()), int(labels.max())
        expected = f"labels -1 and 0 to {classes - 1} among the auxiliary images (dataset.oe)"
        raise settings.error("pairs", f"expected {expected}, got {lowest} to {highest}; leave pairs out")


def teacher_data(experiment: Experiment) -> OutlierData:
    """What OAL learns from: a teacher, outlier embeddings, and latents of outlier prompts (the section `dream`).

    A teacher without a checkpoint is trained first, into the folder of the imagination's artifacts.
    """
    settings, dream = experiment.trainer, experiment.imagination
    assert isinstance(settings, OAL)  # noqa: S101 # nosec B101 (no other trainer needs a teacher)
    latents = main_process_only(lambda: dream.latents(settings.n_latents))
    teacher = settings.teacher
    own = experiment.changed({"network": {"name": teacher.network, "args": teacher.args}})
    if teacher.checkpoint is None:
        checkpoint = train(_teacher_training(own, teacher)) / "best.ckpt"
    else:
        checkpoint = Path(teacher.checkpoint)
    net = get_network(own.network, **own.dataset.shape)
    load_weights(net, checkpoint, "trainer.teacher.checkpoint")
    weights = files.sha256(checkpoint)
    outliers = main_process_only(lambda: dream.outliers_around(net, weights))
    (outlier_table, embeddings), (latent_table, drawn) = load_outliers(outliers), load_latents(latents)
    inputs = {
        "teacher": net,
        "embeddings": embeddings.all(),
        "latents": drawn.all(),
        "embedding_labels": torch.tensor(outlier_table["class"].to_numpy()),
        "latent_labels": torch.tensor(latent_table["class"].to_numpy()),
    }
    identity = [outliers.hash, latents.hash, weights]
    return OutlierData(outlier_label(experiment), None, identity, [*outliers.warnings, *latents.warnings], inputs)


def _teacher_training(own: Experiment, teacher: TeacherSettings) -> Experiment:
    """The experiment that trains OAL's teacher, in a folder named by all that determines it."""
    changes = {
        "trainer": {"name": "base"},
        "method": "teacher",
        "seed": 0,
        "optimizer.name": teacher.optimizer,
        "optimizer.num_epochs": teacher.epochs,
        "optimizer.lr": teacher.lr,
        "optimizer.trunk_lr": teacher.trunk_lr,
        "network.num_classes": own.dataset.num_classes,
    }
    own = own.changed(changes)
    sections = ("network", "optimizer", "dataset", "preprocessor", "precision")
    about = files.fingerprint([own.at(section) for section in sections])
    return own.changed({"output_dir": str(Path(own.dream.cache_dir, f"{TEACHER}{about}"))})


# ------------------------------------------------------------------------------------------------------------- steps


def _check_shares(experiment: Experiment, cls: type[BaseTrainer], processes: Processes) -> None:
    """Raises InputError for a batch of which not all processes can have as many images."""
    for name in ("train", "oe") if cls.auxiliary else ("train",):
        split = experiment.dataset.split(name)
        try:
            processes.part_of(split.needs_batch_size())
        except ValueError as error:
            raise split.error("batch_size", str(error)) from None


def _prepare(experiment: Experiment, cls: type[BaseTrainer], processes: Processes) -> None:
    """Makes what training reads and what is not there yet: the built-in benchmark, the imagined images."""
    experiment.data.ensure()
    check_folder(experiment)
    labels = experiment.data.images("dataset", "train").labels
    cls.check_plan(experiment.trainer, training_plan(experiment, labels, processes))
    if cls.auxiliary and experiment.dataset.split("oe").imagined:
        experiment.imagination.training_images()


def _fit(
    experiment: Experiment,
    cls: type[BaseTrainer],
    net: nn.Module,
    outliers: OutlierData,
    identity: str,
    processes: Processes,
) -> tuple[list[dict[str, Any]], list[str], str]:
    """Trains the network; returns the history of the epochs, what is doubtful about the training, and its number format."""
    run, data, optimizer = experiment.run, experiment.data, experiment.optimizer
    loaders = [data.loader("dataset", "train", augment=True), *([outliers.loader] if outliers.loader else [])]
    val_loader = placed(data.loader("dataset", "val"), processes.device)
    precision = _precision(experiment, net, processes)
    trainer = cls(
        net,
        *(placed(processes.share(one, run.seed), processes.device) for one in loaders),
        settings=experiment.trainer,
        optimizer=optimizer,
        precision=precision,
        processes=processes,
        **outliers.teacher_inputs,
    )
    split = experiment.dataset.split("train")
    torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
    with enough_memory(partial(split.error, "batch_size"), f"{split.batch_size} images in a step"):
        history = fit(
            trainer,
            lambda net: validate(net, val_loader, processes.device, getattr(torch, precision)),
            experiment.run.folder,
            epochs=optimizer.num_epochs,
            seed=run.seed,
            identity=identity,
            resume=run.resume,
            title=f"train: {experiment.method}, seed {run.seed}",
            processes=processes,
        )
    return history, trainer.remarks(), precision


def _precision(experiment: Experiment, net: nn.Module, processes: Processes) -> str:
    """The number format of a training, which the main process chooses for all."""
    shape, chosen = experiment.dataset.shape, ""
    if processes.is_main:
        size, channels = shape["image_size"], shape["channels"]
        asked = experiment.run.precision
        found = measured_dtype(asked, net, image_size=size, channels=channels, device=processes.device)
        chosen = dtype_name(found)
    return processes.broadcast(chosen)


def validate(net: nn.Module, images: DataLoader, device: torch.device, dtype: torch.dtype) -> float:
    """What the best checkpoint is chosen by.

    Args:
        net: a classifier, or a generative network.
        images: batches of ID validation images.
        device: where the network runs.
        dtype: number format of the computation.

    Returns:
        The accuracy, or a generative network's mean probability of a subpixel, between 0 and 1.
    """
    if isinstance(net, Generative):
        return pixel_probability(net, images, device, dtype)
    return accuracy(net, images, device, dtype)


def _write_record(out: Path, experiment: Experiment, record: dict[str, Any]) -> None:
    """Writes what a finished run leaves besides its weights, and removes what only an unfinished one needs."""
    files.write_text(out / "config.yml", yaml.safe_dump(experiment.to_dict(), sort_keys=False))
    files.write_json(out / TRAINED, record)
    (out / TRAINING).unlink()
    (out / STARTED).unlink()
