"""Any timm backbone behind OpenOOD's network protocol."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from openood_dream.errors import InputError

SMALL_IMAGE = 64  # up to this size a 7x7 stride-2 stem with pooling would leave too few pixels


class TimmNetwork(nn.Module):
    """A timm backbone with a linear classifier, in OpenOOD's network protocol."""

    def __init__(self, name: str, num_classes: int, *, small: bool = False, args: dict[str, Any] | None = None) -> None:
        """Builds the network with new weights.

        Args:
            name: timm's name of the model, such as "resnet18".
            num_classes: outputs of the classifier.
            small: whether the stem of a ResNet-like model gets a 3x3 kernel, stride 1 and no pooling.
            args: further arguments of `timm.create_model`.

        Raises:
            ValueError: timm refuses the arguments.
        """
        super().__init__()
        try:
            backbone: Any = timm.create_model(name, num_classes=0, **(args or {}))
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(f"timm refuses {args!r} for {name} ({error}); expected arguments of it") from None
        if small:
            shrink_stem(backbone)
        self.backbone = backbone
        # some families widen the pooled features once more before the classifier
        self.feature_size: int = getattr(backbone, "head_hidden_size", backbone.num_features)
        self.fc = nn.Linear(self.feature_size, num_classes)

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
