"""Phase 1: an image encoder into the space of the anchors, and the embeddings of the training images there.

The encoder h is trained so that softmax over classes of cos(h(x), T(y)) / t classifies the training images
(DREAM-OOD, Eq. 2); the anchors T stay frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm, trange

from openood_dream import anchors as anchors_stage
from openood_dream import data, store
from openood_dream.config import Config, InputError, SpaceSettings, origin, settings
from openood_dream.networks import SMALL_IMAGE, TimmNetwork, autocast, backbone_name, pick_device, pick_dtype


class Encoder(nn.Module):
    """h: images (B, 3, S, S) -> embeddings (B, m), a timm backbone and a linear layer."""

    def __init__(self, network: str, dim: int, image_size: int, args: dict[str, Any] | None = None) -> None:
        super().__init__()
        key = "dream.space.network_args"
        self.net = TimmNetwork(network, dim, small=image_size <= SMALL_IMAGE, args=args, key=key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def cosine_logits(embeddings: torch.Tensor, anchors: torch.Tensor, temperature: float) -> torch.Tensor:
    """cos(h(x), T(y)) / t of embeddings (B, m) and anchors (C, m): logits (B, C). DREAM-OOD Eq. 2."""
    return F.normalize(embeddings, dim=1) @ F.normalize(anchors, dim=1).T / temperature


def train_encoder(
    encoder: nn.Module,
    train: DataLoader,
    anchors: torch.Tensor,
    space: SpaceSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """Trains h by cross-entropy of the cosine logits: SGD with Nesterov momentum, cosine schedule per step.

    Returns the mean loss of each epoch.
    """
    encoder.to(device, memory_format=torch.channels_last).train()
    anchors = anchors.to(device)
    optimizer = torch.optim.SGD(
        encoder.parameters(), space.lr, momentum=space.momentum, weight_decay=space.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, space.epochs * len(train))
    losses = []
    with trange(space.epochs, desc="space: training the encoder", unit="epoch") as epochs:
        for _ in epochs:
            total = torch.zeros((), device=device)
            for batch in train:
                x = batch["data"].to(device, memory_format=torch.channels_last, non_blocking=True)
                with autocast(device, dtype):
                    h = encoder(x)
                loss = F.cross_entropy(cosine_logits(h.float(), anchors, space.temperature), batch["label"].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
            losses.append(total.item() / len(train))
            epochs.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


@torch.inference_mode()
def embed(encoder: nn.Module, loader: DataLoader, device: torch.device, desc: str = "space: embedding") -> torch.Tensor:
    """Unit-normalised embeddings (N, m) of a loader's images in eval mode, in float32."""
    encoder.to(device).eval()
    rows = [
        F.normalize(encoder(batch["data"].to(device)).float(), dim=1).cpu()
        for batch in tqdm(loader, desc=desc, unit="batch", leave=False)
    ]
    return torch.cat(rows)


def first_per_class(labels: torch.Tensor, limit: int, seed: int) -> torch.Tensor:
    """The row numbers of up to `limit` random images of each class, in ascending order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = [order[labels[order] == label][:limit] for label in labels.unique()]
    return torch.cat(kept).sort().values


def check_labels(images: data.ImageList, classes: int, config: Config) -> None:
    """Raises InputError where a class has no training image."""
    counts = torch.bincount(images.labels, minlength=classes)
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        where = origin(config, "dream.class_names")
        raise InputError(
            f"{where}: dream.class_names: class {empty} has no image in {images.imglist}; names and labels must match"
        )


def run(config: Config) -> store.Artifact:
    """The space stage: `encoder.safetensors`; `embeddings.safetensors` with unit `embeddings` (N, m), `labels` and `rows`.

    The manifest holds the validation accuracy of the cosine classifier, in percent, and the loss of each epoch.
    """
    dream = settings(config, "dream")
    space: SpaceSettings = dream.space
    dataset = config.dataset
    where = origin(config, "dream.space.network")
    network = backbone_name(space.network, f"{where}: dream.space.network")
    data.section_of(config, ("dataset", "val"))
    train_list = data.id_loader(config, "train").dataset
    names = data.class_names(config)
    check_labels(train_list, len(names), config)
    upstream = anchors_stage.run(config)
    inputs = {
        "anchors": upstream.hash,
        "space": space.model_dump(),
        "train": store.list_digest(dataset.train.imglist_pth, dataset.train.data_dir, "dataset.train.imglist_pth"),
        "val": store.list_digest(dataset.val.imglist_pth, dataset.val.data_dir, "dataset.val.imglist_pth"),
        "transform": transform_identity(config),
    }

    def make(folder: Path) -> dict[str, Any]:
        device = pick_device(config.device)
        dtype = pick_dtype(config.precision, device)
        anchors = anchors_stage.load(upstream)
        torch.manual_seed(space.seed)
        encoder = Encoder(network, anchors.shape[1], dataset.image_size, space.network_args)
        augmented = data.image_list(config, "train", dataset.train, augment=True)
        workers = dataset.num_workers or 0
        losses = train_encoder(
            encoder,
            data.loader(augmented, space.batch_size, shuffle=True, workers=workers),
            anchors,
            space,
            device,
            dtype,
        )
        val = data.id_loader(config, "val")
        guesses = cosine_logits(embed(encoder, val, device), anchors, space.temperature).argmax(1)
        accuracy = 100 * (guesses == val.dataset.labels).float().mean().item()
        embeddings = embed(encoder, data.loader(train_list, 256, shuffle=False, workers=workers), device)
        rows = first_per_class(train_list.labels, space.per_class, space.seed)
        store.write_tensors(folder / "encoder.safetensors", **encoder.state_dict())
        store.write_tensors(
            folder / "embeddings.safetensors", embeddings=embeddings[rows], labels=train_list.labels[rows], rows=rows
        )
        return {
            "val_accuracy": round(accuracy, 2),
            "losses": losses,
            "per_class": torch.bincount(train_list.labels[rows]).tolist(),
        }

    return store.build(dream.cache_dir, "space", inputs, make)


def transform_identity(config: Config) -> dict[str, Any]:
    """What of the config decides how an image becomes a tensor."""
    dataset = config.dataset
    found = {
        "sizes": [dataset.pre_size, dataset.image_size],
        "interpolation": dataset.interpolation,
        "normalization": dataset.normalization_type,
        "flip": (config.preprocessor or {}).get("horizontal_flip", True),
        "resized_crop": "imagenet" in dataset.name,
    }
    # newer than some artifacts, and so only where they differ from what was always done
    newer = {"crop": data.switch(config, "preprocessor.random_crop"), "randaugment": data.randaugment(config)}
    return found | {key: value for key, value in newer.items() if value not in (True, None)}


def load(artifact: store.Artifact) -> dict[str, torch.Tensor]:
    """`embeddings` (N, m), `labels` (N,) and `rows` (N,) of a space artifact."""
    return store.read_tensors(artifact.path / "embeddings.safetensors")


def load_encoder(config: Config, artifact: store.Artifact, dim: int) -> Encoder:
    """The trained encoder h of a space artifact, in eval mode."""
    space = settings(config, "dream").space
    encoder = Encoder(
        backbone_name(space.network, "dream.space.network"), dim, config.dataset.image_size, space.network_args
    )
    encoder.load_state_dict(store.read_tensors(artifact.path / "encoder.safetensors"))
    return encoder.eval()
