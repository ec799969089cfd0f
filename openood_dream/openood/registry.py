"""Our trainers, preprocessor and networks in OpenOOD's factories, wherever they are bound; reversible."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn

from openood_dream import data
from openood_dream.config import GENERATIVE_SETTINGS, Config, InputError, check_name, plain, settings
from openood_dream.generative.network import Generative, pixel_probability
from openood_dream.generative.scores import read
from openood_dream.networks import SMALL_IMAGE, TimmNetwork, backbone_name, load_weights
from openood_dream.openood import cache, compat
from openood_dream.postprocessors import POSTPROCESSORS, check_fits
from openood_dream.trainers import TRAINERS
from openood_dream.trainers.base import bare, check_auxiliary
from openood_dream.trainers.processes import first_process_only

PREPROCESSOR = "dream"
OUR_NETWORKS = ["timm:<model>", *GENERATIVE_SETTINGS]
INSTALL = "pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"

# factory -> the parameters that it has in OpenOOD 1.5
FACTORIES = {
    "trainers.get_trainer": ["net", "train_loader", "val_loader", "config"],
    "preprocessors.get_preprocessor": ["config", "split"],
    "networks.get_network": ["network_config"],
    "postprocessors.get_postprocessor": ["config"],
    "evaluators.get_evaluator": ["config"],
    "pipelines.get_pipeline": ["config"],
}
_registered: dict[str, tuple[Callable, Callable]] = {}  # factory -> (OpenOOD's, ours)


def register() -> None:
    """Adds what is ours to OpenOOD's factories, in every loaded module that has them; doing it twice changes nothing.

    The trainers of TRAINERS that OpenOOD does not have, the preprocessor `dream`, networks `timm:<name>` and generative
    ones, their postprocessors, and those that only `evaluation_api` knows; unknown names are answered with the known
    ones. Its test pipelines are served from passes on disk. Raises InputError where OpenOOD is not installed or its
    factories are not those of version 1.5; then nothing is changed.
    """
    wrappers = {
        "trainers.get_trainer": _trainers,
        "preprocessors.get_preprocessor": _preprocessors,
        "networks.get_network": _networks,
        "postprocessors.get_postprocessor": _postprocessors,
        "evaluators.get_evaluator": _evaluators,
        "pipelines.get_pipeline": _pipelines,
    }
    if not _registered:
        originals = {factory: _original(factory) for factory in FACTORIES}
        for factory, wrapper in wrappers.items():
            _registered[factory] = originals[factory], functools.wraps(originals[factory])(wrapper(originals[factory]))
    _rebind(_registered.values())


def unregister() -> None:
    """Puts OpenOOD's own factories back everywhere."""
    _rebind((ours, original) for original, ours in _registered.values())
    _registered.clear()


def registered() -> bool:
    return bool(_registered)


def known(factory: str) -> list[str]:
    """The names that OpenOOD's own factory answers to, sorted, read from its source."""
    original = _registered[factory][0] if factory in _registered else _original(factory)
    tree = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(original)))))
    # get_network compares network_config.name with one name after the other, the others look it up in tables
    names = [
        node.comparators[0]
        for node in tree
        if isinstance(node, ast.Compare) and getattr(node.left, "attr", None) == "name"
    ]
    if factory != "networks.get_network":
        names = [key for node in tree if isinstance(node, ast.Dict) for key in node.keys]
    return sorted({name.value for name in names if isinstance(name, ast.Constant)})


def _original(factory: str) -> Callable:
    """OpenOOD's factory, checked to be the one that we know."""
    room, name = factory.split(".")
    if not compat.installed("openood"):
        raise InputError(f"OpenOOD is not installed; {INSTALL}, or use backend: standalone")
    try:
        with compat.enabled():
            # what binds factories is loaded now, so that it is rebound at once
            for package in ("openood.datasets", "openood.pipelines"):
                importlib.import_module(package)
            module = importlib.import_module(f"openood.{room}.utils")
    except ImportError as error:
        raise InputError(
            f"OpenOOD is installed and cannot be imported ({error}); "
            "repair it (openood-dream doctor), or use backend: standalone"
        ) from error
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise InputError(f"{module.__file__}: has no function {name}; expected OpenOOD 1.5 ({INSTALL})")
    if list(inspect.signature(function).parameters) != FACTORIES[factory]:
        got, expected = ", ".join(inspect.signature(function).parameters), ", ".join(FACTORIES[factory])
        raise InputError(f"{module.__file__}: {name}({got}); expected {name}({expected}) as in OpenOOD 1.5 ({INSTALL})")
    return function


def _rebind(pairs: Iterable[tuple[Callable, Callable]]) -> None:
    """Binds the second of each pair wherever a module, a user's own included, has bound the first."""
    new = {id(old): function for old, function in pairs}  # all are alive in _registered
    for module in [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]:
        for attribute, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, attribute, new[id(value)])


# --------------------------------------------------------------------------------------------------------- trainers


def trainer_is_ours(config: dict) -> bool:
    """Whether `trainer` is one that we have and OpenOOD lacks, or says `implementation: ours`."""
    section = config.get("trainer") or {}
    name = section.get("name")
    return name in TRAINERS and (section.get("implementation") == "ours" or name not in known("trainers.get_trainer"))


def check_trainer(config: dict) -> None:
    """Raises InputError for a trainer that nobody knows, and for one of ours that its config cannot feed."""
    name = (config.get("trainer") or {}).get("name")
    check_name("trainer.name", name, [*TRAINERS, *known("trainers.get_trainer")])
    if name in TRAINERS:
        check_auxiliary(config, TRAINERS[name])
    if trainer_is_ours(config):
        cls, pipeline = TRAINERS[name], (config.get("pipeline") or {}).get("name")
        need = "train_oe" if cls.auxiliary else "train"
        if pipeline != need:
            raise InputError(f"config: pipeline.name: the trainer {name} needs {need!r}, got {pipeline!r}")
        if cls.auxiliary and "oe" not in (config.get("dataset") or {}):
            raise InputError(f"config: dataset.oe: the trainer {name} needs it; add preprocessors/dream.yml")
        settings(config, "trainer")


def _trainers(original: Callable) -> Callable:
    def get_trainer(net: nn.Module, train_loader: Any, val_loader: Any, config: Any) -> Any:
        check_trainer(config)
        if not trainer_is_ours(config):
            return original(net, train_loader, val_loader, config)
        loaders = train_loader if isinstance(train_loader, list) else [train_loader]
        cls, lessons = TRAINERS[config.trainer.name], {}
        if cls.taught:
            from openood_dream import pipelines

            lessons, _ = pipelines.taught(Config(plain(config)))
        return cls(net, *loaders, config, **lessons)

    return get_trainer


# ----------------------------------------------------------------------------------------------------- preprocessor


def _preprocessors(original: Callable) -> Callable:
    def get_preprocessor(config: Any, split: str) -> Any:
        from openood.preprocessors import BasePreprocessor, TestStandardPreProcessor

        name = config.preprocessor.name
        check_name("preprocessor.name", name, [PREPROCESSOR, *known("preprocessors.get_preprocessor")])
        if name == PREPROCESSOR:
            fill_imagined(config)
            # tests fit on training images as they are, like evaluation_api: random crops would make scores random
            augment = split in ("train", "oe") and not str((config.pipeline or {}).get("name")).startswith("test")
            preprocessor = (BasePreprocessor if augment else TestStandardPreProcessor)(config)
        else:
            preprocessor = original(config, split)
        for key, step in (("horizontal_flip", "RandomHorizontalFlip"), ("random_crop", "RandomCrop")):
            if config.preprocessor.get(key) is False:
                _drop(preprocessor, step)
        return preprocessor

    return get_preprocessor


def _drop(preprocessor: Any, name: str) -> None:
    from torchvision.transforms import Compose

    if isinstance(getattr(preprocessor, "transform", None), Compose):
        steps = preprocessor.transform.transforms
        preprocessor.transform = Compose([step for step in steps if type(step).__name__ != name])


def fill_imagined(config: Any) -> None:
    """Puts the imagined image set in the place of the word `imagined` in `dataset.oe`, drawing it first if need be.

    With several processes the first one draws, and the others wait until it is done or has failed.
    """
    section = config.dataset.get("oe")
    if "oe" not in config.dataset.split_names or section is None or section.imglist_pth != data.IMAGINED:
        return
    if config.get("trainer"):
        check_trainer(config)  # before anything is drawn
    section.imglist_pth, section.data_dir = first_process_only(lambda: _imagine(config))
    config.outlier_data = f"imagined ({settings(config, 'dream').outliers.method})"


def _imagine(config: Any) -> tuple[str, str]:
    if not config.get("dream"):
        raise InputError("config: dream: missing; add a file that sets it, such as synthesis/cifar10.yml")
    from openood_dream import quality

    imglist, folder, _ = quality.chosen(Config(plain(config)))
    return str(imglist), str(folder)


# --------------------------------------------------------------------------------------------------------- networks


def _networks(original: Callable) -> Callable:
    def get_network(network_config: Any) -> Any:
        name = str(network_config.name)
        if name in GENERATIVE_SETTINGS:
            net = Generative(settings({"network": network_config}, "network"))
        elif name.startswith("timm:"):
            net = _timm(network_config)
        else:
            check_name("network.name", name, [*OUR_NETWORKS, *known("networks.get_network")])
            return original(network_config)
        if network_config.pretrained:
            load_weights(net, network_config.checkpoint)
            net.eval()  # some of OpenOOD's postprocessors fit before anybody else does this
        if network_config.num_gpus and network_config.num_gpus > 1:
            import openood.utils.comm as comm

            return nn.parallel.DistributedDataParallel(net.cuda(), device_ids=[comm.get_local_rank()])
        return net.cuda() if network_config.num_gpus else net

    return get_network


def _timm(network_config: Any) -> TimmNetwork:
    size = network_config.image_size
    if not isinstance(size, int):
        raise InputError(
            f"config: network.image_size: expected the images' pixels a side, got {size!r}; "
            "set it to '@{dataset.image_size}'"
        )
    model = backbone_name(str(network_config.name), "config: network.name")
    args = plain(network_config.get("args") or {})
    return TimmNetwork(model, network_config.num_classes, small=size <= SMALL_IMAGE, args=args)


# --------------------------------------------------------------------------------------------------- postprocessors


# postprocessors that OpenOOD has and its pipelines' table lacks
NOT_IN_TABLE = {"scale": "ScalePostprocessor", "nnguide": "NNGuidePostprocessor"}


def postprocessor_names() -> list[str]:
    return sorted({*known("postprocessors.get_postprocessor"), *NOT_IN_TABLE, *generative_names()})


def generative_names() -> list[str]:
    """The postprocessors of generative networks, which are ours."""
    return [name for name, cls in POSTPROCESSORS.items() if cls.generative]


def check_postprocessor(config: dict) -> None:
    """Raises InputError for a postprocessor that nobody knows, and for one that is not for this network."""
    check_name("postprocessor.name", (config.get("postprocessor") or {}).get("name"), postprocessor_names())
    check_fits(Config(config))


def _postprocessors(original: Callable) -> Callable:
    def get_postprocessor(config: Any) -> Any:
        from openood import postprocessors
        from openood.networks.ash_net import ASHNet
        from openood.networks.scale_net import ScaleNet
        from openood.postprocessors.info import num_classes_dict

        check_postprocessor(config)
        name = config.postprocessor.name
        if name in generative_names():
            cls = POSTPROCESSORS[name]
            return HostDetector(cls(cls.arguments(config)))
        with mock.patch.dict(
            num_classes_dict, {config.dataset.name: config.dataset.num_classes}
        ):  # it knows four data sets
            post = getattr(postprocessors, NOT_IN_TABLE[name])(config) if name in NOT_IN_TABLE else original(config)
        if name in ("ash", "scale"):
            # their rule is in a network around the network, which evaluation_api adds and the pipelines do not
            wrapper, postprocess = ASHNet if name == "ash" else ScaleNet, post.postprocess
            post.postprocess = lambda net, images: postprocess(wrapper(net), images)
        return post

    return get_postprocessor


class HostDetector:
    """One of our detectors of generative networks in OpenOOD's postprocessor protocol."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    def setup(self, net: nn.Module, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Nothing is fitted."""

    def inference(self, net: nn.Module, data_loader: Any, progress: bool = True) -> tuple[Any, Any, Any]:
        """Predictions, all -1, confidences and labels, as NumPy arrays (N,)."""
        net = bare(net)
        device = next(net.parameters()).device
        images, labels = read(net, data_loader, device)
        conf = self.detector.score(net, images, device)
        return torch.full((len(labels),), -1).numpy(), conf.numpy(), labels.numpy()


# ------------------------------------------------------------------------------------------------------- evaluators


def _evaluators(original: Callable) -> Callable:
    def get_evaluator(config: Any) -> Any:
        evaluator = original(config)
        if config.network.name in GENERATIVE_SETTINGS and not config.get("postprocessor"):
            evaluator.eval_acc = _probability
        return evaluator

    return get_evaluator


def _probability(net: nn.Module, data_loader: Any, postprocessor: Any = None, epoch_idx: int = -1) -> dict[str, float]:
    """Stands for the accuracy, by which the best checkpoint is chosen; the loss is in bits per dimension."""
    net = bare(net)
    p = pixel_probability(net, data_loader, next(net.parameters()).device)
    return {"epoch_idx": epoch_idx, "loss": -math.log2(p), "acc": p}


# -------------------------------------------------------------------------------------------------------- pipelines


def _pipelines(original: Callable) -> Callable:
    def get_pipeline(config: Any) -> Any:
        pipeline = original(config)
        if cache.serves(config):
            run = pipeline.run

            def run_served() -> None:
                with cache.served(config, pipeline):
                    run()

            pipeline.run = run_served
        return pipeline

    return get_pipeline
