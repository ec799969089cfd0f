"""A network on trial: one batch of two random images, before anything long is begun with it."""

from __future__ import annotations

from typing import Any

import timm
import torch

from openood_dream.config.schema import Section
from openood_dream.errors import reason
from openood_dream.networks.timm_network import SMALL_IMAGE, RefusedError, TimmNetwork, backbone_name

_passed = set[str]()  # what has been tried in this process


def check_backbone(
    section: Section, name: str, args: str, *, image_size: int, num_classes: int, channels: int = 3
) -> None:
    """Checks that a timm network can be built, takes images and can be trained; once in a process.

    No random number of anybody else is consumed.

    Args:
        section: the settings that describe it.
        name: their key that says which one, timm:<model>.
        args: their key with further arguments of `timm.create_model`.
        image_size: pixels a side of its images.
        num_classes: its outputs.
        channels: of an image.

    Raises:
        InputError: names the key, says what the network does not take, and what to do.
    """
    model, given = backbone_name(getattr(section, name), section.where(name)), getattr(section, args) or {}
    about = repr((model, image_size, num_classes, channels, sorted(given.items(), key=str)))
    if about in _passed:
        return
    with torch.random.fork_rng(devices=[]):
        try:
            _Trial(model, image_size, num_classes, channels).check(given)
        except RefusedError as error:
            below = f"{args}.{error.argument}" if error.argument else args
            raise section.error(below if given else name, str(error)) from None
    _passed.add(about)


class _Trial:
    """A model, and the images that it is tried with."""

    def __init__(self, name: str, image_size: int, num_classes: int, channels: int) -> None:
        self.name, self.image_size, self.num_classes, self.channels = name, image_size, num_classes, channels

    def check(self, args: dict[str, Any]) -> None:
        """Raises RefusedError where the model does not run with these arguments."""
        try:
            self._run(args, self.image_size)
        except RefusedError as error:
            raise RefusedError(str(error), error.argument or self._culprit(args)) from None
        except Exception as error:  # what timm's models raise has no common type
            culprit = self._culprit(args)
            given = f" with {culprit}: {args[culprit]!r}" if culprit else f" with {args!r}" if args else ""
            text = f"{self.name}{given} fails on images of {self.channels}x{self.image_size}x{self.image_size}"
            raise RefusedError(f"{text} ({reason(error)}); {self._remedy(args, culprit)}", culprit) from None

    def _run(self, args: dict[str, Any], image_size: int) -> None:
        """One pass of two images, and one step back, as trainers do it; any error where that cannot be done."""
        net = TimmNetwork(
            self.name, self.num_classes, small=image_size <= SMALL_IMAGE, channels=self.channels, args=args
        )
        net.to(memory_format=torch.channels_last)
        images = torch.randn(2, self.channels, image_size, image_size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            features = net.eval().features(images)
        if features.shape != (2, net.feature_size):
            shape = "x".join(map(str, features.shape[1:]))
            raise ValueError(f"expected {net.feature_size} pooled features of an image, got {shape}")
        logits, _ = net.train()(images, return_feature=True)
        logits.sum().backward()

    def _passes(self, args: dict[str, Any], image_size: int) -> bool:
        try:
            self._run({**args, "pretrained": False}, image_size)
        except Exception:  # as above
            return False
        return True

    def _culprit(self, args: dict[str, Any]) -> str:
        """The argument without which the model runs; "" if there is none such."""
        kept = {name: {key: value for key, value in args.items() if key != name} for name in args}
        return next((name for name in args if self._passes(kept[name], self.image_size)), "")

    def _remedy(self, args: dict[str, Any], culprit: str) -> str:
        """What makes it run; each remedy has been tried."""
        about, size = timm.get_pretrained_cfg(self.name), self.image_size
        own = about.input_size[-1] if about else size
        if culprit:
            return "without it it works"
        if self._passes({**args, "img_size": size}, size):
            return f"add img_size: {size} to its arguments, or give it images of {own} pixels, which it is made for"
        if own != size and self._passes(args, own):
            return (
                f"it is made for images of {own} pixels: set dataset.pre_size and dataset.image_size, or take another"
            )
        return "take another, such as timm:resnet18"
