"""Where OpenOOD's methods and a config do not fit each other as they are: small changes of the former, never of results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openood_dream.errors import InputError, warn
from openood_dream.networks.settings import GENERATIVE_SETTINGS
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.parallel.processes import unwrap_model

# networks around the network, which evaluation_api adds and the pipelines do not: postprocessor -> module, class
AROUND = {"ash": ("ash_net", "ASHNet"), "scale": ("scale_net", "ScaleNet")}
LOGS = {"config.yml", "log.txt"}  # what OpenOOD writes before it looks at anything
NPOS = {"network": "npos_net", "preprocessor": "cider"}  # what OpenOOD's own npos needs
NPOS_OPTIMIZER = ("warm", "cosine", "lr_decay_rate", "mlp_decay_rate")


@contextmanager
def folder_undone(config: Mapping[str, Any]) -> Iterator[None]:
    """A run inside the block that fails before it has made anything leaves no folder, which would block the next.

    Args:
        config: OpenOOD's config.
    """
    out = Path(config["output_dir"])
    there = out.exists()
    try:
        yield
    except Exception:
        main = import_module("openood.utils.comm").is_main_process()
        if main and not there and out.is_dir() and {path.name for path in out.iterdir()} <= LOGS:
            shutil.rmtree(out, ignore_errors=True)
        raise


def complete_network(config: Mapping[str, Any]) -> None:
    """Tells our networks, also those inside OpenOOD's, how large and how normalised images are.

    Args:
        config: OpenOOD's config, or plain dicts, whose section `network` is written to.
    """
    dataset, network = config["dataset"], config["network"]
    if network.get("num_gpus") is None:
        network["num_gpus"] = config.get("num_gpus") or 0
    while isinstance(network, dict):
        generative = network.get("name") in GENERATIVE_SETTINGS
        wanted = ["image_size"] if generative or str(network.get("name")).startswith("timm:") else []
        for key in [*wanted, "normalization_type"] if generative else wanted:
            if network.get(key) is None and dataset.get(key) is not None:
                network[key] = dataset[key]
        network = network.get("backbone")


# --------------------------------------------------------------------------------------------------------- trainers


def npos_is_theirs(config: Mapping[str, Any]) -> bool:
    """Whether a config has the network that OpenOOD's own npos needs; ours trains any other.

    Args:
        config: OpenOOD's config, or plain dicts.
    """
    return (config.get("network") or {}).get("name") == NPOS["network"]


def check_npos(config: Mapping[str, Any]) -> None:
    """Checks that OpenOOD's own npos has all that it needs.

    Args:
        config: OpenOOD's config, or plain dicts.

    Raises:
        InputError: something is missing.
    """
    for section, name in NPOS.items():
        got = (config.get(section) or {}).get("name")
        if got != name:
            raise InputError(
                f"config: {section}.name: OpenOOD's npos needs {name!r}, got {got!r}; set it, or take another network, "
                "which ours trains"
            )
    for key in NPOS_OPTIMIZER:
        if (config.get("optimizer") or {}).get(key) is None:
            raise InputError(f"config: optimizer.{key}: missing; OpenOOD's npos needs it, as in its npos.yml")


def fit_vos(net: nn.Module, config: Any) -> None:
    """Tells OpenOOD's vos the width of the network's features, which its config says too.

    Args:
        net: the network.
        config: OpenOOD's config, which is written to.
    """
    width = getattr(unwrap_model(net), "feature_size", None)
    if width is not None:
        config.feature_dim = width


# --------------------------------------------------------------------------------------------------- postprocessors


def adapt(name: str, post: Any, searches: bool) -> Any:
    """Makes one of OpenOOD's postprocessors do what its config and the network at hand ask for.

    Args:
        name: its name.
        post: the postprocessor, which is changed.
        searches: `APS_mode`.

    Returns:
        The postprocessor.
    """
    setup, postprocess = post.setup, post.postprocess

    def fitted(net: nn.Module, *loaders: Any) -> None:
        setup(net, *loaders)
        if name == "react" and not hasattr(post, "threshold"):
            post.set_hyperparam([post.percentile])  # versions of 2023 do so in a search alone
        if name in LIMITS:
            _keep_possible(name, post, searches)

    if name == "react" or name in LIMITS:
        post.setup = fitted
    if name in AROUND:
        module, wrapper = AROUND[name]
        around = getattr(import_module(f"openood.networks.{module}"), wrapper)
        post.postprocess = lambda net, images: postprocess(around(net), images)
    if name == "rankfeat":
        post.postprocess = lambda net, images: postprocess(_with_blocks(net), images)
    return post


# hyperparameter and the most that it can be, for those whose scores would be no numbers, or all the same, beyond
LIMITS: dict[str, tuple[str, str, Callable[[Any], int]]] = {
    "knn": ("K", "training images", lambda post: len(post.activation_log)),
    "vim": ("dim", "less than the network's features", lambda post: post.w.shape[1] - 1),
}


def _keep_possible(name: str, post: Any, searches: bool) -> None:
    """Takes the values that do not fit out of a search, as standalone does; InputError where none fits."""
    key, what, limit = LIMITS[name]
    most, sweep = limit(post), post.args_dict or {}
    if not searches or (name == "vim" and not hasattr(post, "_compute_NS_and_alpha")):  # older ones search for nothing
        if getattr(post, key) > most:
            text = f"expected at most {most} ({what}), got {getattr(post, key)}"
            raise InputError(f"config: postprocessor.postprocessor_args.{key}: {text}")
        return
    values = list(sweep.get(f"{key}_list") or [])
    fitting, others = [value for value in values if value <= most], [value for value in values if value > most]
    if not fitting:
        text = f"expected values up to {most} ({what}), got {values}"
        raise InputError(f"config: postprocessor.postprocessor_sweep.{key}_list: {text}")
    if others:
        left = ", ".join(f"{key} {value}" for value in others)
        warn(f"{name}: the search leaves out {left}, which does not fit (at most {most}, {what})")
    post.args_dict = {**sweep, f"{key}_list": fitting}


def _with_blocks(net: nn.Module) -> Any:
    """A network with the blocks that rankfeat asks OpenOOD's ResNets for; InputError where it has none."""
    own: Any = unwrap_model(net)
    if hasattr(own, "intermediate_forward"):
        return own
    if isinstance(own, TimmNetwork) and hasattr(own.backbone, "layer4") and hasattr(own.backbone, "global_pool"):
        return _Blocks(own)
    raise InputError(
        "config: network.name: rankfeat needs the four blocks of a ResNet, which this network has not; "
        "take timm:resnet18 or its like, or another postprocessor"
    )


class _Blocks:
    """One of timm's ResNets in the form of OpenOOD's.

    Args:
        net: the network.
    """

    def __init__(self, net: TimmNetwork) -> None:
        backbone: Any = net.backbone
        self.backbone, self.fc = backbone, net.fc
        self.layer4, self.avgpool = backbone.layer4, backbone.global_pool

    def intermediate_forward(self, x: torch.Tensor, layer_index: int) -> torch.Tensor:
        """Features (B, C, H, W) after block `layer_index`, 1 to 4, of normalised images `x`."""
        return self.backbone.forward_intermediates(x, intermediates_only=True)[layer_index - 5]
