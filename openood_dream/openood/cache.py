"""OpenOOD's postprocessors, unmodified, served from passes on disk: a stand-in takes the place of the network.

Loaders hand out keys (set, row) instead of images, and the stand-in answers them with the logits and features of that
row. So each image is decoded and passes the network once per checkpoint, whatever scores it and however often.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from openood_dream import plugins
from openood_dream.config.tree import lookup, plain
from openood_dream.datasets.images import Transform, as_is
from openood_dream.datasets.imglist import list_identity
from openood_dream.errors import InputError
from openood_dream.evaluators.passes import forward_pass, stored_pass
from openood_dream.openood import compat
from openood_dream.postprocessors.base import POSTPROCESSORS, Pass
from openood_dream.store import files

# What needs logits, penultimate features and the classifier alone. All others, for gradients with respect to pixels, inner
# layers or a network of their own, run the real network on the real images.
SERVED = frozenset(
    "ash dice ebo fdbd gen gradnorm klm knn mds mls msp nci nnguide react relation residual rmds scale she "
    "temperature_scaling vim vra".split()
)
NOT_THE_NETWORK = ("checkpoint", "pretrained", "num_gpus")
FEW = 8  # images whose outputs stand for what a network does


def _served(name: str) -> bool:
    """Whether a postprocessor needs no more than passes: one of SERVED, or of a plugin that does not run the network."""
    cls = POSTPROCESSORS.get(name)
    return name in SERVED or cls is not None and plugins.is_added(cls) and not cls.runs_network and not cls.generative


def serves(config: Any) -> bool:
    """Whether a config's pipeline scores a checkpoint, in one process, with a postprocessor that passes are enough for."""
    if (config.get("evaluator") or {}).get("passes") is False:
        return False
    alone = (config.get("num_gpus") or 0) * (config.get("num_machines") or 1) <= 1
    network = config.network
    scores = str(config.pipeline.name) in ("test_ood", "test_ood_aps") and _served(config.postprocessor.name)
    return alone and scores and bool(network.get("pretrained")) and isinstance(network.get("checkpoint"), str)


@contextmanager
def served(config: Any, pipeline: Any) -> Iterator[None]:
    """The pipeline's run inside the block gets keys for images and a stand-in for the network.

    Args:
        config: OpenOOD's config.
        pipeline: one of its pipelines.
    """
    module = sys.modules[type(pipeline).__module__]
    net = module.get_network(config.network)
    if not hasattr(net, "get_fc_layer") or "return_feature" not in inspect.signature(net.forward).parameters:
        yield  # a network of another protocol
        return
    if not _repeats(net, config.dataset.image_size):
        yield  # one that draws random numbers
        return
    cache = Cache(net, config)
    id_loaders, ood_loaders = module.get_dataloader, module.get_ood_dataloader
    keyed = {
        "get_network": lambda network_config: StandIn(net, cache),
        "get_dataloader": lambda host: cache.keyed(id_loaders(host), ("dataset",)),
        "get_ood_dataloader": lambda host: cache.keyed(ood_loaders(host), ("ood_dataset",)),
    }
    with compat.replaced(module, **keyed), files.looked_once():
        yield


def _repeats(net: nn.Module, size: int) -> bool:
    """Whether a network has the same outputs each time, on two images of noise."""
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return outputs(net, noise) == outputs(net, noise)


@torch.no_grad()
def outputs(net: nn.Module, images: torch.Tensor) -> list[str]:
    """What tells networks apart by logits and features of images: numbers that the order of sums does not change.

    Args:
        net: the network; it is put in evaluation mode.
        images: (B, 3, S, S), normalised.
    """
    found = list[str]()
    net.eval()
    for out in net(images.to(next(net.parameters()).device), return_feature=True):
        values = out.double().flatten().cpu()
        size = values.square().mean().sqrt()
        waves = torch.arange(len(values), dtype=torch.double).cos()
        parts = (values.mean() / size, (values @ waves) / len(values) ** 0.5 / size)
        found += [f"{size:.3e}", *(f"{part:.3f}" for part in parts)]
    return found


def code(net: nn.Module) -> dict[str, str]:
    """The source files of a network's classes but torch's, by class, as their bytes' hashes.

    Args:
        net: the network.
    """
    classes = {type(module) for module in net.modules()}
    found = {}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        file = sys.modules.get(cls.__module__) and getattr(sys.modules[cls.__module__], "__file__", None)
        if not cls.__module__.startswith("torch.") and file and Path(file).is_file():
            found[f"{cls.__module__}.{cls.__qualname__}"] = files.sha256(Path(file))
    return found


def passes_folder(config: Any) -> Path:
    """Where passes are kept: in the folder of all results, which postprocessors share; never beside a checkpoint.

    Args:
        config: OpenOOD's config, whose `output_dir` ends with `exp_name`.
    """
    out, name = str(config.output_dir), str(config.get("exp_name") or "")
    root = out.removesuffix(name) if name else ""
    return Path(root or out) / "passes"


class Cache:
    """The passes of one run, made when first asked for.

    Args:
        net: the network, with its weights.
        config: OpenOOD's config.
    """

    def __init__(self, net: nn.Module, config: Any) -> None:
        self.net, self.config = net, config
        self.folder, self.checkpoint = passes_folder(config), files.sha256(Path(config.network.checkpoint))
        self.code = code(net)
        self.sets: list[tuple[tuple[str, ...], DataLoader]] = []
        self.made: dict[int, Pass] = {}

    def keyed(self, loaders: dict[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
        """The same loaders, with keys for images; those that change their images at random stay as they are.

        Args:
            loaders: OpenOOD's loaders by name, nested.
            where: the config keys above these names.
        """
        return {
            name: self.keyed(inner, (*where, name)) if isinstance(inner, dict) else self._keyed(inner, (*where, name))
            for name, inner in loaders.items()
        }

    def _keyed(self, loader: DataLoader, which: tuple[str, ...]) -> DataLoader:
        from openood.datasets.imglist_dataset import ImglistDataset
        from openood.preprocessors import TestStandardPreProcessor

        images: Any = loader.dataset
        if type(images) is not ImglistDataset or type(images.preprocessor) is not TestStandardPreProcessor:
            return loader
        self.sets.append((which, loader))
        rows = Rows(self, len(self.sets) - 1, len(images))
        shuffle = isinstance(loader.sampler, RandomSampler)
        return DataLoader(rows, batch_size=loader.batch_size, shuffle=shuffle, collate_fn=as_is)

    def of(self, number: int) -> Pass:
        """The pass over a set; InputError names the postprocessor and the image whose output is not a number."""
        which, loader = self.sets[number]
        if number not in self.made:
            self.made[number] = self._stored(which, loader)
        found = self.made[number]
        if found.broken is not None:
            images: Any = loader.dataset
            file, name = images.imglist[found.broken].split(" ", 1)[0], self.config.postprocessor.name
            raise InputError(
                f"{name}: the network's output for image {found.broken} of {which[-1]} ({file}) is not a number; "
                "check the checkpoint"
            )
        return found

    def _stored(self, which: tuple[str, ...], loader: DataLoader) -> Pass:
        section, dataset, network = lookup(self.config, which), self.config.dataset, self.config.network
        transform = Transform(
            dataset.pre_size,
            dataset.image_size,
            dataset.get("normalization_type") or "",
            dataset.get("interpolation") or "bilinear",
        )
        images: Any = loader.dataset
        few = torch.stack([images[row]["data"] for row in range(min(FEW, len(images)))])
        inputs = {
            "host": "openood",
            "checkpoint": self.checkpoint,
            "network": {key: plain(value) for key, value in network.items() if key not in NOT_THE_NETWORK},
            "code": self.code,
            "outputs": outputs(self.net, few),
            "list": list_identity(section.imglist_pth, section.data_dir, f"{'.'.join(which)}.imglist_pth"),
            "transform": transform.test_identity,
        }
        batches = DataLoader(images, batch_size=loader.batch_size, num_workers=loader.num_workers)
        device = next(self.net.parameters()).device
        return stored_pass(self.folder, inputs, lambda: forward_pass(self.net, batches, device))


class Rows(Dataset):
    """Batches of keys (B, 2), the number of a set and a row of it, with the rows' labels.

    Args:
        cache: the passes.
        number: the number of the set in them.
        length: its images.
    """

    def __init__(self, cache: Cache, number: int, length: int) -> None:
        self.cache, self.number, self.length = cache, number, length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.tensor(indices)
        # float32, which postprocessors turn images into, is exact up to 16 million rows
        keys = torch.stack([torch.full_like(rows, self.number), rows], dim=1).float()
        return {"data": keys, "label": self.cache.of(self.number).labels[rows], "index": rows}


class StandIn(nn.Module):
    """Answers keys from passes, and images by the network.

    Args:
        net: the network.
        cache: the passes.
    """

    def __init__(self, net: nn.Module, cache: Cache) -> None:
        super().__init__()
        of_protocol: Any = net
        self.net, self.cache, self.fc = net, cache, of_protocol.get_fc_layer()

    def forward(self, x: torch.Tensor, return_feature: bool = False) -> Any:
        """Logits (B, C), and with `return_feature` features (B, D), of keys (B, 2) or images `x` (B, 3, S, S)."""
        if x.ndim != 2:
            return self.net(x, return_feature=return_feature)
        of, rows = self.cache.of(int(x[0, 0])), x[:, 1].long().cpu()
        logits = of.logits[rows].to(x.device)
        return (logits, of.features[rows].to(x.device)) if return_feature else logits

    def forward_threshold(self, x: torch.Tensor, threshold: float) -> torch.Tensor:
        """Logits of the features of keys `x` clipped at `threshold` (ReAct)."""
        return self.fc(self(x, return_feature=True)[1].clip(max=threshold))

    def get_fc(self) -> Any:
        """Weight and bias of the classifier, as NumPy arrays."""
        net: Any = self.net
        return net.get_fc()

    def get_fc_layer(self) -> nn.Module:
        """The classifier."""
        return self.fc
