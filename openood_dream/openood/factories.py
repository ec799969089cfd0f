"""What stands in the place of OpenOOD's factories: each makes what is ours, and passes all else on to OpenOOD's own.

Their `config` is OpenOOD's Config, a dict whose keys are attributes too; it alone is ever written to.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn
from torch.utils.data import DataLoader

from openood_dream import plugins
from openood_dream.config.host_names import NAMES
from openood_dream.config.schema import validated
from openood_dream.config.tree import plain
from openood_dream.datasets.settings import IMAGINED, OptimizerSettings
from openood_dream.dream.samplers import get_sampler
from openood_dream.dream.settings import DreamSettings
from openood_dream.errors import InputError, check_name, warn
from openood_dream.experiment import Experiment
from openood_dream.networks import factory
from openood_dream.networks.generative.network import pixel_probability
from openood_dream.networks.settings import GENERATIVE_SETTINGS, network_model
from openood_dream.networks.timm_network import backbone_name
from openood_dream.openood import adapted, cache
from openood_dream.openood.detector import HostDetector
from openood_dream.parallel.processes import main_process_only, unwrap_model
from openood_dream.pipelines.train import teacher_data, training_plan
from openood_dream.postprocessors.known import POSTPROCESSORS, check_fits, find_postprocessor
from openood_dream.postprocessors.settings import PostprocessorSettings
from openood_dream.trainers import oal
from openood_dream.trainers.base import check_auxiliary
from openood_dream.trainers.known import TRAINERS

PREPROCESSOR = "dream"
OUR_NETWORKS = ("timm:<model>", *GENERATIVE_SETTINGS)
# postprocessors that OpenOOD has and its pipelines' table lacks
NOT_IN_TABLE = {
    "scale": "ScalePostprocessor",
    "nnguide": "NNGuidePostprocessor",
    "iodin": "IODINPostprocessor",
    "cfood": "CFOODPostprocessor",
    "reweightood": "ReweightOODPostprocessor",
}


def scores_here(name: str) -> bool:
    """Whether OpenOOD has no postprocessor of this name and we have one: for generative networks, or of a plugin."""
    cls = POSTPROCESSORS.get(name)
    return cls is not None and (cls.generative or plugins.is_added(cls))


def known(name: str) -> list[str]:
    """The names that a factory answers to, OpenOOD 1.5's, ours and those of plugins, sorted."""
    ours: dict[str, Iterable[str]] = {
        "get_trainer": TRAINERS,
        "get_preprocessor": (PREPROCESSOR,),
        "get_network": OUR_NETWORKS,
        "get_postprocessor": (*NOT_IN_TABLE, *filter(scores_here, POSTPROCESSORS)),
    }
    return sorted({*NAMES[name], *ours.get(name, ())})


def ask(factory: Callable, key: str, value: Any, *args: Any) -> Any:
    """Asks one of OpenOOD's factories, or somebody's wrapper of it, for what is not ours.

    Args:
        factory: the factory.
        key: the config key that names what it makes, such as "trainer.name".
        value: the value of the key.
        args: the factory's arguments.

    Returns:
        What it makes.

    Raises:
        InputError: it does not know the name; the message lists those that we know of.
    """
    names = known(f"get_{key.partition('.')[0]}")
    try:
        found = factory(*args)
    except Exception as error:
        lacking = isinstance(error, KeyError) and error.args == (value,)
        unspecific = type(error) is Exception and value not in names  # which get_network raises
        if not (lacking or unspecific):
            raise
        found = None
    if found is None:
        check_name(key, value, names)
        raise InputError(f"{key}: OpenOOD has no {value!r} here; check pipeline.name, or update OpenOOD")
    return found


def check_known(factory: Callable, key: str, value: Any, *args: Any) -> None:
    """Checks a name before anything is computed; OpenOOD is asked about a name alone that we do not know.

    Args:
        factory: the one that will be asked for it.
        key: the config key.
        value: the name.
        args: arguments with which the factory is asked; they need not be complete.

    Raises:
        InputError: neither we nor the factory know the name.
    """
    if value in known(f"get_{key.partition('.')[0]}"):
        return
    try:
        ask(factory, key, value, *args)
    except InputError:
        raise
    except Exception:
        return  # it knows the name, and lacked something to make it of


def experiment_of(config: Mapping[str, Any]) -> Experiment:
    """Our view of OpenOOD's Config, validated; a copy."""
    return Experiment(plain(config))


# --------------------------------------------------------------------------------------------------------- trainers


def trainer_is_ours(config: Mapping[str, Any]) -> bool:
    """Whether `trainer` is one that we have and OpenOOD lacks or cannot run here, or says `implementation: ours`."""
    section = config.get("trainer") or {}
    name, ours = section.get("name"), section.get("implementation") == "ours"
    unfit = name == "npos" and not adapted.npos_is_theirs(config)
    return name in TRAINERS and (ours or unfit or name not in NAMES["get_trainer"])


def check_trainer(get_trainer: Callable, config: Mapping[str, Any]) -> None:
    """Checks a trainer before anything is computed.

    Args:
        get_trainer: the factory that will be asked for it.
        config: OpenOOD's config, or plain dicts.

    Raises:
        InputError: nobody knows it, or it is one of ours that the config cannot feed.
    """
    name, pipeline = (config.get("trainer") or {}).get("name"), (config.get("pipeline") or {}).get("name")
    loaders: Any = [None, None] if pipeline == "train_oe" else DataLoader([0])  # type: ignore[arg-type]
    check_known(get_trainer, "trainer.name", name, None, loaders, None, config)
    _check_auxiliary_images(config)
    if name not in TRAINERS:
        return
    cls, auxiliary = TRAINERS[str(name)], (config.get("dataset") or {}).get("oe")
    if config.get("dream"):
        outliers = validated(DreamSettings, plain(config["dream"]), ("dream",)).outliers
        imglist = (auxiliary or {}).get("imglist_pth")
        check_auxiliary(cls, imglist, get_sampler(outliers).keeps_class, functools.partial(outliers.error, "method"))
    if trainer_is_ours(config):
        need = "train_oe" if cls.auxiliary else "train"
        if pipeline != need:
            raise InputError(f"config: pipeline.name: the trainer {name} needs {need!r}, got {pipeline!r}")
        if cls.auxiliary and auxiliary is None:
            raise InputError(f"config: dataset.oe: the trainer {name} needs it; add preprocessors/dream.yml")
        settings, experiment = validated(cls.Settings, plain(config["trainer"]), ("trainer",)), experiment_of(config)
        if all(map(experiment.has, ("network", "dataset", "optimizer"))):  # a script may name them elsewhere
            cls.check_plan(settings, training_plan(experiment))
    elif name == "npos":
        adapted.check_npos(config)


def _check_auxiliary_images(config: Mapping[str, Any]) -> None:
    """InputError where `dataset.oe` asks for what OpenOOD's preprocessors, which know no image's number, cannot do."""
    oe = (config.get("dataset") or {}).get("oe") or {}
    for key, wanted in (("interpolation", isinstance(oe.get("interpolation"), list)), ("jpeg", bool(oe.get("jpeg")))):
        if wanted:
            raise InputError(
                f"config: dataset.oe.{key}: OpenOOD resizes and stores all images alike, got {oe[key]!r}; choose "
                "backend: standalone, or leave it out"
            )


def _trainers(original: Callable) -> Callable:
    def get_trainer(net: nn.Module, train_loader: Any, val_loader: Any, config: Any) -> Any:
        name = config.trainer.name
        if not trainer_is_ours(config):
            if name == "vos":
                adapted.fit_vos(net, config)
            return ask(original, "trainer.name", name, net, train_loader, val_loader, config)
        check_trainer(original, config)
        if name == "npos" and config.trainer.get("implementation") != "ours":
            warn(f"trainer.implementation: ours trains npos: OpenOOD's needs network.name {adapted.NPOS['network']}")
        loaders = train_loader if isinstance(train_loader, list) else [train_loader]
        cls = TRAINERS[name]
        given = teacher_data(experiment_of(config)).teacher_inputs if cls.needs_teacher else {}
        return cls(
            net,
            *loaders,
            settings=validated(cls.Settings, plain(config.trainer), ("trainer",)),
            optimizer=validated(OptimizerSettings, plain(config.optimizer), ("optimizer",)),
            precision=config.get("precision") or "auto",
            **given,
        )

    return get_trainer


# ----------------------------------------------------------------------------------------------------- preprocessor


def _preprocessors(original: Callable) -> Callable:
    def get_preprocessor(config: Any, split: str) -> Any:
        from openood.preprocessors import BasePreprocessor, TestStandardPreProcessor

        name = config.preprocessor.name
        if name == PREPROCESSOR:
            fill_imagined(config)
            # tests fit on training images as they are, like evaluation_api: random crops would make scores random
            augment = split in ("train", "oe") and not str((config.get("pipeline") or {}).get("name")).startswith(
                "test"
            )
            preprocessor = (BasePreprocessor if augment else TestStandardPreProcessor)(config)
        else:
            preprocessor = ask(original, "preprocessor.name", name, config, split)
        for key, step in (("horizontal_flip", "RandomHorizontalFlip"), ("random_crop", "RandomCrop")):
            if config.preprocessor.get(key) is False:
                _drop(preprocessor, step)
        return preprocessor

    return get_preprocessor


def _drop(preprocessor: Any, name: str) -> None:
    """Takes the steps whose class has this name out of a preprocessor."""
    from torchvision.transforms import Compose

    if isinstance(getattr(preprocessor, "transform", None), Compose):
        steps = preprocessor.transform.transforms
        preprocessor.transform = Compose([step for step in steps if type(step).__name__ != name])


def fill_imagined(config: Any) -> None:
    """Puts the imagined image set in the place of the word `imagined` in `dataset.oe` of OpenOOD's config.

    It is drawn first if need be: with several processes by the main one, while the others wait.

    Args:
        config: OpenOOD's config, which is written to.
    """
    section = config.dataset.get("oe")
    if "oe" not in config.dataset.split_names or section is None or section.get("imglist_pth") != IMAGINED:
        return
    if config.get("trainer"):
        name = (config.get("pipeline") or {}).get("name")
        pipeline = sys.modules.get(f"openood.pipelines.{name}_pipeline")
        check_trainer((pipeline or sys.modules["openood.trainers"]).get_trainer, config)  # before it is drawn
    section.imglist_pth, section.data_dir, config.outlier_data = main_process_only(lambda: imagine(config))


def imagine(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """The imagined images of OpenOOD's config: imglist, data_dir, and what tables call them; drawn if need be."""
    if not config.get("dream"):
        raise InputError("config: dream: missing; add a file that sets it, such as synthesis/cifar10.yml")
    chosen = experiment_of(config).imagination.training_images()
    return str(chosen.imglist), str(chosen.data_dir), chosen.description


# --------------------------------------------------------------------------------------------------------- networks


def check_network(get_network: Callable, network: Mapping[str, Any]) -> None:
    """Checks the name of a network before anything is computed.

    Args:
        get_network: the factory that will be asked for it.
        network: the section `network` of OpenOOD's config.

    Raises:
        InputError: neither we nor OpenOOD know it, or it is one of timm's that does not fit the images.
    """
    name, size = str(network.get("name")), network.get("image_size")
    if name.startswith("timm:"):
        backbone_name(name, "config: network.name")
        if isinstance(size, int):
            factory.check_network(validated(network_model(name), plain(network), ("network",)), image_size=size)
    elif name not in GENERATIVE_SETTINGS:
        check_known(get_network, "network.name", name, network)


def _networks(original: Callable) -> Callable:
    def get_network(network_config: Any) -> Any:
        name = str(network_config.name)
        if name not in GENERATIVE_SETTINGS and not name.startswith("timm:"):
            return ask(original, "network.name", name, network_config)
        size = network_config.get("image_size")
        if not isinstance(size, int):
            raise InputError(
                f"config: network.image_size: expected the images' pixels a side, got {size!r}; "
                "set it to '@{dataset.image_size}'"
            )
        settings = validated(network_model(name), plain(network_config), ("network",))
        factory.check_network(settings, image_size=size)
        net = factory.get_network(settings, image_size=size)
        if network_config.get("pretrained"):
            net.eval()  # some of OpenOOD's postprocessors fit before anybody else does this
        if (network_config.get("num_gpus") or 0) > 1:
            from openood.utils import comm

            return nn.parallel.DistributedDataParallel(net.cuda(), device_ids=[comm.get_local_rank()])
        return net.cuda() if network_config.get("num_gpus") else net

    return get_network


# --------------------------------------------------------------------------------------------------- postprocessors


def check_postprocessor(get_postprocessor: Callable, config: Mapping[str, Any]) -> None:
    """Checks a postprocessor before anything is computed.

    Args:
        get_postprocessor: the factory that will be asked for it.
        config: OpenOOD's config.

    Raises:
        InputError: nobody knows it, or it is not for this network.
    """
    section = config.get("postprocessor") or {}
    check_known(get_postprocessor, "postprocessor.name", section.get("name"), config)
    settings = validated(PostprocessorSettings, plain(section), ("postprocessor",))
    if scores_here(settings.name):
        find_postprocessor(settings, (config.get("network") or {}).get("name"))
    else:
        check_fits(settings, (config.get("network") or {}).get("name"))


def _postprocessors(original: Callable) -> Callable:
    def get_postprocessor(config: Any) -> Any:
        from openood import postprocessors
        from openood.postprocessors.info import num_classes_dict

        check_postprocessor(original, config)
        name = config.postprocessor.name
        config.postprocessor.setdefault("postprocessor_sweep", None)  # without which OpenOOD's tag v1.5 stops
        if scores_here(name):
            settings = validated(PostprocessorSettings, plain(config.postprocessor), ("postprocessor",))
            config.postprocessor.APS_mode = settings.searches  # OpenOOD would search where there is nothing to search
            return HostDetector(POSTPROCESSORS[name], settings, config.dataset.name)
        sizes = {config.dataset.name: config.dataset.num_classes}
        with mock.patch.dict(num_classes_dict, sizes):  # it knows four data sets
            if name in NOT_IN_TABLE:
                made = getattr(postprocessors, NOT_IN_TABLE[name], lambda config: None)  # younger than some versions
                post = ask(made, "postprocessor.name", name, config)
            else:
                post = ask(original, "postprocessor.name", name, config)
        return adapted.adapt(name, post, bool(config.postprocessor.get("APS_mode")))

    return get_postprocessor


# ------------------------------------------------------------------------------------------ evaluators and pipelines


def _evaluators(original: Callable) -> Callable:
    def get_evaluator(config: Any) -> Any:
        evaluator = ask(original, "evaluator.name", config.evaluator.name, config)
        if config.network.name in GENERATIVE_SETTINGS and not (config.get("postprocessor") or {}).get("name"):
            evaluator.eval_acc = _probability
        return evaluator

    return get_evaluator


def _probability(net: nn.Module, data_loader: Any, postprocessor: Any = None, epoch_idx: int = -1) -> dict[str, float]:
    """Stands for the accuracy, by which the best checkpoint is chosen; the loss is in bits per dimension."""
    generative: Any = unwrap_model(net)
    p = pixel_probability(generative, data_loader, next(generative.parameters()).device)
    return {"epoch_idx": epoch_idx, "loss": -math.log2(p), "acc": p}


def _pipelines(original: Callable) -> Callable:
    def get_pipeline(config: Any) -> Any:
        pipeline = ask(original, "pipeline.name", config.pipeline.name, config)
        if config.get("network") and config.get("dataset"):
            adapted.complete_network(config)
        run = pipeline.run

        def run_ours() -> None:
            with ExitStack() as stack:
                if config.get("save_output"):
                    stack.enter_context(adapted.folder_undone(config))
                if cache.serves(config):
                    stack.enter_context(cache.served(config, pipeline))
                run()

        pipeline.run = run_ours
        return pipeline

    return get_pipeline


WRAPPERS: dict[str, Callable[[Callable], Callable]] = {  # each takes what it is put around
    "get_trainer": _trainers,
    "get_preprocessor": _preprocessors,
    "get_network": _networks,
    "get_postprocessor": _postprocessors,
    "get_evaluator": _evaluators,
    "get_pipeline": _pipelines,
}


def outlier_label(config: Mapping[str, Any]) -> str | None:
    """What a training learns from besides ID images, as tables say it; None for imagined images, which are not there yet."""
    trainer, pipeline = (config.get("trainer") or {}).get("name"), (config.get("pipeline") or {}).get("name")
    if trainer in TRAINERS and TRAINERS[trainer].needs_teacher:
        return oal.outlier_label(config["trainer"].get("pairing", ""))
    imglist = ((config.get("dataset") or {}).get("oe") or {}).get("imglist_pth")
    return None if pipeline != "train_oe" or imglist in (None, IMAGINED) else Path(imglist).stem
