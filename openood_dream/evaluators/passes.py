"""One forward pass for each data set, kept on disk for every detector that scores it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.datasets.images import placed
from openood_dream.datasets.loaders import Data
from openood_dream.device import enough_memory
from openood_dream.errors import InputError
from openood_dream.networks.features import outputs
from openood_dream.postprocessors.base import Images, Pass, Postprocessor
from openood_dream.store import artifacts, files
from openood_dream.store.tensors import read_tensors, write_tensors

Set = tuple[str, ...]  # a data set by the keys of its section: ("dataset", "test"), ("ood_dataset", "nearood", "tin")
TEST: Set = ("dataset", "test")


def forward_pass(net: nn.Module, loader: DataLoader, device: torch.device, *, bar: bool = True) -> Pass:
    """Logits and features of every image of a loader, in float32.

    Args:
        net: a network of OpenOOD's protocol (`return_feature`); it is put on `device` and in evaluation mode.
        loader: gives batches with images as `data` and classes as `label`; it is iterated once.
        device: where the network runs.
        bar: whether there is a progress bar.

    Returns:
        The pass, on the CPU.
    """
    net.to(device).eval()
    parts = outputs(lambda x: net(x, return_feature=True), loader, device, desc="evaluate", bar=bar)
    logits, features, labels = zip(*((out.float(), feature.float(), label) for (out, feature), label in parts))
    return Pass(torch.cat(logits), torch.cat(features), torch.cat(labels))


def head_of(net: Any) -> nn.Linear | None:
    """The classifier of a network, a copy on the CPU in float32; None for a network that has none."""
    if not hasattr(net, "get_fc_layer"):
        return None
    return copy.deepcopy(net.get_fc_layer()).cpu().float().requires_grad_(False)


class Passes:
    """The passes of one network over data sets, each made when it is first asked for.

    With the file of the network's weights they are artifacts, named by its bytes, the image list and the transform, and
    memory-mapped: every detector and every later run finds them there.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        device: torch.device,
        *,
        network: Mapping[str, Any],
        checkpoint: Path | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Makes no pass yet.

        Args:
            net: the network, with its weights.
            data: the data sets.
            device: where the network runs.
            network: what identifies the network beside its weights, such as {"name": "timm:resnet18", "args": None}.
            checkpoint: file of the network's weights; without it passes are not kept on disk.
            cache_dir: folder that passes are kept in; needed with `checkpoint`.
        """
        self.net, self.data, self.device, self.network, self.cache_dir = net, data, device, dict(network), cache_dir
        self.checkpoint = None if checkpoint is None else files.sha256(checkpoint)
        self._made: dict[Set, Pass] = {}
        self._loaders: dict[Set, DataLoader] = {}

    def of(self, which: Set, cls: type[Postprocessor]) -> Pass | Images:
        """What a detector gets of a data set.

        Args:
            which: the set.
            cls: the class of the detector.

        Raises:
            InputError: the network's output for an image is not a number.
        """
        if cls.runs_network:
            if which not in self._loaders:
                self._loaders[which] = self.data.loader(*which)
            return Images(self.net, self._loaders[which], self.device, self.data.dataset.name)
        if which not in self._made:
            self._made[which] = dataclasses.replace(self._stored(which), batch=self.data.split(*which).batch_size)
        found = self._made[which]
        if found.broken is not None:
            image = self.image(which, found.broken)
            raise InputError(f"{cls.name}: the network's output for {image} is not finite; check the checkpoint")
        return found

    def head(self) -> nn.Linear | None:
        """The network's classifier, a copy on the CPU; None for a network that has none."""
        return head_of(self.net)

    def image(self, which: Set, row: int) -> str:
        """How messages name an image: "image 6 of digits (digits/test/zero/0006.png)".

        Args:
            which: its data set.
            row: its row in the list.
        """
        file, _ = self.data.images(*which).rows[row]
        return f"image {row} of {file_name(which, self.data.dataset.name)} ({file})"

    def _forward(self, which: Set) -> Pass:
        section = self.data.dataset.split("test") if which[0] == "dataset" else self.data.ood
        assert section is not None  # noqa: S101 # nosec B101 (else there was no such set)
        batches = self.data.loader(*which)
        with enough_memory(partial(section.error, "batch_size"), f"{batches.batch_size} images"):
            return forward_pass(self.net, placed(batches, self.device), self.device)

    def _stored(self, which: Set) -> Pass:
        if self.checkpoint is None or self.cache_dir is None:
            return self._forward(which)
        inputs = {
            "checkpoint": self.checkpoint,
            "network": self.network,
            "list": self.data.identity(*which),
            "transform": self.data.transform.test_identity,
        }
        images = self.data.images(*which)
        return stored_pass(self.cache_dir, inputs, lambda: self._forward(which), images.doubts)


def stored_pass(
    cache_dir: Path, inputs: Mapping[str, Any], forward: Callable[[], Pass], doubts: Callable[[], list[str]] = list
) -> Pass:
    """A pass on disk, made if it is not there yet.

    Args:
        cache_dir: folder of passes.
        inputs: what determines the pass, as JSON has it.
        forward: makes the pass.
        doubts: says what is doubtful about the images once they were read; the pass keeps it, and warns of it.

    Returns:
        The pass, memory-mapped.
    """

    def make(folder: Path) -> dict[str, Any]:
        made = forward()
        tensors = {"logits": made.logits, "features": made.features, "labels": made.labels}
        write_tensors(folder / "pass.safetensors", **tensors)
        return {"warnings": doubts()}

    artifact = artifacts.build(cache_dir, "pass", dict(inputs), make)
    found = read_tensors(artifact.path / "pass.safetensors", logits=2, features=2, labels=1)
    return Pass(found["logits"], found["features"], found["labels"])


def passes_dir(checkpoint: Path, out: Path) -> Path:
    """Where the passes of a checkpoint are kept: beside it, for all that score it.

    Args:
        checkpoint: file of the weights.
        out: folder of the evaluation, which keeps them where the checkpoint's folder cannot be written to.
    """
    try:
        return files.writable(checkpoint.parent / "passes")
    except InputError:
        return out / "passes"


def file_name(which: Set, id_name: str) -> str:
    """The name of a data set in ood.csv and scores/.

    Args:
        which: the set.
        id_name: the name of the ID data set, `dataset.name`, which is that of its test set.
    """
    return id_name if which == TEST else which[-1]
