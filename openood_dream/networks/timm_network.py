"""Any timm backbone behind OpenOOD's network protocol."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from openood_dream.errors import InputError, reason, show
from openood_dream.networks import fast  # noqa: F401  (registers it with timm)

SMALL_IMAGE = 64  # up to this size a 7x7 stride-2 stem with pooling would leave too few pixels
NO_ARGUMENTS = {
    "num_classes": "the data set says it",
    "in_chans": "dataset.channels says it",
    "features_only": "a classifier needs pooled features",
    "checkpoint_path": "network.checkpoint, with network.pretrained: true, is a file of weights",
}


class RefusedError(ValueError):
    """A model that cannot be: why, and the argument that is to blame, "" where that is not known."""

    def __init__(self, text: str, argument: str = "") -> None:
        super().__init__(text)
        self.argument = argument


class TimmNetwork(nn.Module):
    """A timm backbone with a linear classifier, in OpenOOD's network protocol."""

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        small: bool = False,
        channels: int = 3,
        args: dict[str, Any] | None = None,
    ) -> None:
        """Builds the network with new weights.

        Args:
            name: timm's name of the model, such as "resnet18".
            num_classes: outputs of the classifier.
            small: whether the stem of a ResNet-like model gets a 3x3 kernel, stride 1 and no pooling.
            channels: of an image.
            args: further arguments of `timm.create_model`.

        Raises:
            RefusedError: timm refuses the arguments, or its weights are not here.
        """
        super().__init__()
        backbone = _backbone(name, channels, args or {})
        if small:
            shrink_stem(backbone)
        self.backbone = backbone
        # some families widen the pooled features once more before the classifier
        self.feature_size: int = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.fc = nn.Linear(self.feature_size, num_classes)

    def adapt(self, images: torch.Tensor) -> None:
        """Makes what a network takes from its training images before it is trained, if anything.

        Args:
            images: normalised images (N, C, S, S).
        """
        if self.adapts:
            self.backbone.whiten(images)

    @property
    def adapts(self) -> bool:
        """Whether it takes something from its training images."""
        return isinstance(self.backbone, fast.FastVGG)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The pooled features (B, feature_size) of normalised images (B, 3, S, S)."""
        return self.backbone(x)

    def forward(self, x: torch.Tensor, return_feature: bool = False, return_feature_list: bool = False) -> Any:
        """Classifies images.

        Args:
            x: normalised images (B, 3, S, S).
            return_feature: whether to return the pooled features too.
            return_feature_list: whether to return the features of all stages too.

        Returns:
            Logits (B, num_classes); with `return_feature` logits and features (B, feature_size); with
            `return_feature_list` logits and a list of every stage's features, the pooled ones last.
        """
        if return_feature_list:
            last, stages = self.backbone.forward_intermediates(x)
            feature = self.backbone.forward_head(last)
            return self.fc(feature), [*stages, feature]
        feature = self.features(x)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits

    def forward_threshold(self, x: torch.Tensor, threshold: float) -> torch.Tensor:
        """Logits from clipped features, for ReAct.

        Args:
            x: normalised images (B, 3, S, S).
            threshold: the largest value that a feature keeps.

        Returns:
            Logits (B, num_classes).
        """
        return self.fc(self.features(x).clip(max=threshold))

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier's weight (num_classes, feature_size) and bias (num_classes,)."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """The classifier."""
        return self.fc

    def own_names(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict with this network's names in place of those of timm, torchvision or OpenOOD's ResNets.

        Args:
            state: tensors by name.
        """
        classifier, own = self.backbone.pretrained_cfg.get("classifier"), self.backbone.state_dict()

        def renamed(name: str) -> str:
            if isinstance(classifier, str) and name.startswith(f"{classifier}."):
                return f"fc{name[len(classifier) :]}"
            # the same two layers, which OpenOOD calls a shortcut
            return f"backbone.{name if name in own else name.replace('.shortcut.', '.downsample.')}"

        return {renamed(name): tensor for name, tensor in state.items()}


def _backbone(name: str, channels: int, args: dict[str, Any]) -> Any:
    """timm's model without its classifier; RefusedError where timm refuses it."""
    as_it_is = {"in_chans": channels, "features_only": False, "checkpoint_path": None}
    for key, why in NO_ARGUMENTS.items():
        if key in args and (key not in as_it_is or args[key] != as_it_is[key]):
            raise RefusedError(f"expected no {key} ({why}), got {show(args[key])}; leave it out", key)
    given = args if channels == 3 else {**args, "in_chans": channels}
    try:
        return timm.create_model(name, num_classes=0, **given)
    except Exception as error:  # those of timm, torch and the hub have no common type
        text = f"timm refuses {args!r} for {name} ({reason(error)}); expected arguments of it"
        if args.get("pretrained") and _builds(name, {**given, "pretrained": False}):
            why = reason(error, 100)
            text = f"cannot get the weights of {name} ({why}); {_where_weights_are(name)}"
            raise RefusedError(text, "pretrained") from None
        raise RefusedError(text) from None


def _builds(name: str, args: dict[str, Any]) -> bool:
    try:
        timm.create_model(name, num_classes=0, **args)
    except Exception:  # as above
        return False
    return True


def _where_weights_are(name: str) -> str:
    """What to do where timm's weights of a model are not here."""
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.hf_hub_id:
        return "timm has none to download; leave pretrained out"
    return (
        f"where there is a network run `hf download {about.hf_hub_id}` without HF_HUB_OFFLINE, which keeps them in "
        "HF_HOME for later, or leave pretrained out"
    )


def shrink_stem(backbone: Any) -> None:
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
    """The model's name in "timm:<model>".

    Args:
        name: the value of `network.name`.
        where: the beginning of messages about it, such as "birds.yml: network.name".

    Returns:
        timm's name of the model.

    Raises:
        InputError: `name` has another form, or timm has no such model.
    """
    prefix, _, model = name.partition(":")
    if prefix != "timm" or not model:
        raise InputError(f"{where}: unknown network {name!r}; expected timm:<model>, for example timm:resnet18")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3) or ["resnet18", "vit_small_patch16_224"]
        raise InputError(f"{where}: timm has no model {model!r}; did you mean {', '.join(near)}?")
    return model
