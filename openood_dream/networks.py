"""Any timm backbone behind OpenOOD's network protocol, and where and in which precision networks run."""

from __future__ import annotations

import difflib
import textwrap
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from openood_dream.config import GENERATIVE_SETTINGS, Config, InputError, origin, settings

SMALL_IMAGE = 64  # up to this size a 7x7 stride-2 stem with pooling would leave too few pixels


class TimmNetwork(nn.Module):
    """A timm backbone with a linear classifier, in OpenOOD's network protocol.

    `forward(x)` gives logits (B, num_classes); with `return_feature` also the pooled features (B, feature_size), with
    `return_feature_list` also every stage's features, pooled ones last. `small` gives the stems of ResNet-like
    models a 3x3 kernel, stride 1 and no pooling. Raises InputError for arguments that timm refuses.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        small: bool = False,
        args: dict[str, Any] | None = None,
        key: str = "network.args",
    ) -> None:
        super().__init__()
        try:
            self.backbone = timm.create_model(name, num_classes=0, **(args or {}))
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise InputError(f"{key}: timm refuses {args!r} for {name} ({error}); expected arguments of it") from None
        if small:
            shrink_stem(self.backbone)
        # some families widen the pooled features once more before the classifier
        self.feature_size = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        self.fc = nn.Linear(self.feature_size, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)

    def forward(self, x: torch.Tensor, return_feature: bool = False, return_feature_list: bool = False):
        if return_feature_list:
            pooled, stages = self.backbone.forward_intermediates(x)
            feature = self.backbone.forward_head(pooled)
            return self.fc(feature), [*stages, feature]
        feature = self.features(x)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits

    def forward_threshold(self, x: torch.Tensor, threshold: float) -> torch.Tensor:
        """Logits of the features clipped at `threshold` (ReAct)."""
        return self.fc(self.features(x).clip(max=threshold))

    def get_fc(self):
        """The classifier's weight (num_classes, feature_size) and bias as NumPy arrays."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def shrink_stem(backbone: nn.Module) -> None:
    """Gives a ResNet-like backbone a 3x3, stride 1 stem without pooling, as is usual for 32x32 images."""
    if isinstance(getattr(backbone, "maxpool", None), nn.Module):
        backbone.maxpool = nn.Identity()
    conv = getattr(backbone, "conv1", None)
    if isinstance(conv, nn.Sequential):  # deep stems: three 3x3 convolutions, the first of stride 2
        for layer in conv:
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    elif isinstance(conv, nn.Conv2d):
        backbone.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)


def backbone_name(name: str, where: str) -> str:
    """`resnet18` of `timm:resnet18`; InputError for any other form, and for a model that timm does not have."""
    prefix, _, model = name.partition(":")
    if prefix != "timm" or not model:
        raise InputError(f"{where}: unknown network {name!r}; expected timm:<model>, for example timm:resnet18")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3) or ["resnet18", "vit_small_patch16_224"]
        raise InputError(f"{where}: timm has no model {model!r}; did you mean {', '.join(near)}?")
    return model


def check_network(config: Config) -> None:
    """Raises InputError where `network.name` is unknown or `network.args` is no mapping. Builds nothing."""
    network = config.network or Config()
    if network.name in GENERATIVE_SETTINGS:
        return
    backbone_name(str(network.name), f"{origin(config, 'network.name')}: network.name")
    if not isinstance(network.args, (dict, type(None))):
        where = origin(config, "network.args")
        raise InputError(f"{where}: network.args: expected a mapping of timm's arguments, got {network.args!r}")


def get_network(config: Config) -> nn.Module:
    """The network of a config's `network` section (`name: timm:<model>`, `args`, or a generative one), with the weights
    of `checkpoint` where `pretrained`."""
    check_network(config)
    network = config.network
    if network.name in GENERATIVE_SETTINGS:
        from openood_dream.generative.network import Generative

        net = Generative(settings(config, "network"))
    else:
        small = config.dataset.image_size <= SMALL_IMAGE
        model, where = network.name.partition(":")[2], origin(config, "network.args")
        classes, key = config.dataset.num_classes, f"{where}: network.args"
        net = TimmNetwork(model, classes, small=small, args=network.args, key=key)
    if network.pretrained:
        if not network.checkpoint:
            where = origin(config, "network.pretrained")
            raise InputError(
                f"{where}: network.checkpoint: missing, and network.pretrained loads it; for timm's own weights, "
                "network.args: {pretrained: true}"
            )
        load_weights(net, network.checkpoint)
    return net


def load_weights(net: nn.Module, checkpoint: str | Path) -> None:
    """Loads a checkpoint of tensors into `net`; InputError names a file that is missing, damaged or of another network."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error that follows says it better
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{checkpoint}: no such checkpoint (network.checkpoint); train first or check the path"
        ) from None
    except Exception as error:  # torch reports a damaged file through many exception types
        raise InputError(
            f"{checkpoint}: not a readable checkpoint ({type(error).__name__}); expected tensors by name, saved by "
            "torch.save(net.state_dict(), file): restore it, or delete its folder and train again"
        ) from None
    try:
        net.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], 160, placeholder=" ...")
        raise InputError(
            f"{checkpoint}: the weights do not fit the network ({reason}); check network.name and num_classes"
        ) from None


def pick_device(name: str | None) -> torch.device:
    """The device of `device: auto|cpu|cuda|cuda:N|mps`; auto takes CUDA, then MPS, then the CPU."""
    name = name or "auto"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {name!r} cannot be used here ({reason}); expected auto, cpu, cuda or mps") from None
    return device


def pick_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The dtype of `precision: auto|float32|bfloat16`; auto takes bfloat16 where the device computes in it."""
    if precision in ("float32", "bfloat16"):
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        native = torch.cpu.get_capabilities()
        return (
            torch.bfloat16
            if native.get("avx512_bf16") or native.get("amx_bf16") or native.get("bf16")
            else torch.float32
        )
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Mixed precision in `dtype`; for float32 a context that changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
