"""Detectors of ours and of plugins in OpenOOD's postprocessor protocol."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.evaluators.evaluate import checked_scores, swept
from openood_dream.evaluators.passes import forward_pass, head_of
from openood_dream.parallel.processes import unwrap_model
from openood_dream.postprocessors.base import Images, Pass, Postprocessor
from openood_dream.postprocessors.likelihood import LikelihoodScore, uint8_images
from openood_dream.postprocessors.settings import PostprocessorSettings


class HostDetector:
    """A detector that OpenOOD lacks, as one of its postprocessors.

    Args:
        cls: the detector's class.
        settings: its hyperparameters, and the values of a search.
        dataset: `dataset.name`, the name of the ID data.
    """

    def __init__(self, cls: type[Postprocessor], settings: PostprocessorSettings, dataset: str) -> None:
        self.cls, self.settings, self.dataset = cls, settings, dataset
        self.detector = cls(cls.arguments(settings))
        self.given: tuple[nn.Module, Mapping[str, Any]] | None = None
        self.values: list[Any] = []
        self.passes: dict[str, Any] = {}
        self.args_dict = {name: swept(settings, name) for name in cls.sweep} if settings.searches else {}

    def setup(self, net: nn.Module, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Fits the detector to ID images.

        Args:
            net: the network.
            id_loader_dict: loaders of ID images by split.
            ood_loader_dict: not used.
        """
        if self.cls.generative:
            return  # which have nothing to fit
        self.given, self.passes = (net, id_loader_dict), {}
        self._fit()

    def _fit(self) -> None:
        if self.given is None:
            return
        net, loaders = self.given

        def split(name: str) -> Any:
            if name not in self.passes:
                self.passes[name] = self._images(net, loaders[name])
            return self.passes[name]

        self.detector.fit(split, head_of(unwrap_model(net)))

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Fits the detector anew.

        Args:
            hyperparam: values of those of `args_dict`, in its order.
        """
        self.values = hyperparam
        self.detector = self.cls(
            self.cls.arguments(self.settings, **dict(zip(self.args_dict, hyperparam, strict=True)))
        )
        self._fit()

    def get_hyperparam(self) -> list[Any]:
        """What `set_hyperparam` was given last."""
        return self.values

    def inference(self, net: nn.Module, data_loader: Any, progress: bool = True) -> tuple[Any, Any, Any]:
        """Scores a data set.

        Args:
            net: the network.
            data_loader: its images.
            progress: not used.

        Returns:
            Predictions, confidences and labels, as NumPy arrays (N,); the predictions of a generative network are -1.

        Raises:
            InputError: a score is not a number.
        """
        if self.cls.generative:
            generative: Any = unwrap_model(net)
            device = next(generative.parameters()).device
            images, labels = uint8_images(generative, data_loader, device)
            conf = cast(LikelihoodScore, self.detector).score(generative, images, device)
            return torch.full((len(labels),), -1).numpy(), conf.numpy(), labels.numpy()
        found = self._images(net, data_loader)
        scores = checked_scores(self.detector, self.detector.confidence(found), "image {}".format)
        return self.detector.prediction(found).numpy(), scores, found.labels.numpy()

    def _images(self, net: nn.Module, loader: DataLoader) -> Pass | Images:
        """What the detector gets of a loader's images, in the order of their list."""
        ordered = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
        device = next(net.parameters()).device
        if self.cls.runs_network:
            return _HostImages(net, ordered, device, self.dataset)
        made = forward_pass(net, ordered, device)
        return Pass(made.logits, made.features, made.labels, loader.batch_size)


class _HostImages(Images):
    """Images of one of OpenOOD's loaders, whose labels only its batches say."""

    @cached_property
    def labels(self) -> torch.Tensor:
        """The labels (N,) of the images."""
        return torch.cat([batch["label"] for batch in self.loader])
