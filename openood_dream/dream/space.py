"""Phase 1: an image encoder into the space of the anchors, and the embeddings of the training images there.

The encoder h is trained so that softmax over classes of cos(h(x), T(y)) / t classifies the training images
(DREAM-OOD, Eq. 2); the anchors T stay frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream.datasets.images import ImageList, loader, placed
from openood_dream.device import autocast, enough_memory, pick_device
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.settings import SpaceSettings
from openood_dream.errors import InputError
from openood_dream.networks.features import embed
from openood_dream.networks.precision import measured_dtype
from openood_dream.networks.timm_network import SMALL_IMAGE, TimmNetwork, backbone_name
from openood_dream.networks.trial import check_backbone
from openood_dream.parallel.processes import Processes
from openood_dream.parallel.state import read_state, restoring, set_random_state, write_state
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import load_into, read_tensors, write_tensors

BATCH = 256  # images per batch where nothing is trained
STATE = "encoder.state"  # what an interrupted training goes on from


class Encoder(nn.Module):
    """h: images (B, 3, S, S) -> embeddings (B, m), a timm backbone and a linear layer.

    Args:
        network: timm's name of the backbone.
        dim: the width m of the embeddings.
        image_size: pixels a side of the images; up to 64 the stem keeps their size.
        args: further arguments of the backbone.
    """

    def __init__(self, network: str, dim: int, image_size: int, args: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.net = TimmNetwork(network, dim, small=image_size <= SMALL_IMAGE, args=args)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, m) of normalised images (B, 3, S, S)."""
        return self.net(x)


def make_encoder(settings: SpaceSettings, dim: int, image_size: int) -> Encoder:
    """A new encoder.

    Args:
        settings: `dream.space`, for the backbone and its arguments.
        dim: the width m of the embeddings.
        image_size: pixels a side of the images.

    Raises:
        InputError: there is no such backbone, or it refuses the arguments.
    """
    network = backbone_name(settings.network, settings.where("network"))
    try:
        return Encoder(network, dim, image_size, settings.network_args)
    except InputError:
        raise
    except ValueError as error:
        raise settings.error("network_args", str(error)) from None


def cosine_logits(embeddings: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """cos(h(x), T(y)) / t: the logits of the space's classifier. DREAM-OOD, Eq. 2.

    Args:
        embeddings: h(x) (B, m), of any length.
        anchors: T(y) (C, m), of any length.
        temperature: t.

    Returns:
        Logits (B, C).
    """
    return F.normalize(embeddings, dim=1) @ F.normalize(anchors, dim=1).T / temperature


def train_encoder(
    encoder: nn.Module,
    train: DataLoader,
    anchors: Tensor,
    settings: SpaceSettings,
    device: torch.device,
    dtype: torch.dtype,
    state: Path,
) -> list[float]:
    """Trains h by cross-entropy of the cosine logits: SGD with Nesterov momentum, cosine schedule per step.

    A training that was interrupted goes on after its last whole epoch, and ends as if it had not been.

    Args:
        encoder: h, whose weights change; it ends on `device`.
        train: shuffled batches of augmented images.
        anchors: T(y) (C, m), which stay what they are.
        settings: `dream.space`.
        device: where it is trained.
        dtype: number format of the encoder's computation.
        state: the file that an interrupted training goes on from; it is renewed after each epoch.

    Returns:
        The mean loss of each epoch.

    Raises:
        FloatingPointError: the loss is no longer a number; no such state is kept.
        InputError: the file is damaged.
    """
    encoder.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    anchors = anchors.to(device)
    optimizer = torch.optim.SGD(
        encoder.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * len(train))
    trained: dict[str, Any] = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    alone = Processes(device)
    losses = _losses_so_far(state, alone, trained)
    done, most = len(losses), settings.epochs
    with tqdm(range(done, most), "space: training the encoder", most, initial=done, unit="epoch") as epochs:
        for _ in epochs:
            losses.append(_epoch(encoder, train, anchors, settings.temperature, optimizer, schedule, device, dtype))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"space: epoch {len(losses)}: the loss is not finite; lower {settings.key('lr')} ({settings.lr:g})"
                )
            write_state(state, alone, {name: part.state_dict() for name, part in trained.items()} | {"losses": losses})
            epochs.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def _epoch(
    encoder: nn.Module,
    train: DataLoader,
    anchors: Tensor,
    temperature: float,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """One pass over the training images; returns its mean loss."""
    total = torch.zeros((), device=device)
    for batch in train:
        x = batch["data"].to(device, memory_format=torch.channels_last, non_blocking=True)
        with autocast(device, dtype):
            h = encoder(x)
        loss = F.cross_entropy(cosine_logits(h.float(), anchors, temperature), batch["label"].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
    return total.item() / len(train)


def _losses_so_far(file: Path, alone: Processes, trained: dict[str, Any]) -> list[float]:
    """Brings what is trained to where an interrupted training stopped, if there is one; returns its epochs' losses."""
    found = read_state(file, alone, {"losses": list})
    if found is None:
        return []
    with restoring(file):
        for name, part in trained.items():
            part.load_state_dict(found[name])
        set_random_state(found, alone)
    return found["losses"]


def unit_embeddings(
    encoder: nn.Module, batches: DataLoader, device: torch.device, desc: str = "space: embedding"
) -> Tensor:
    """Unit-length embeddings of images.

    Args:
        encoder: h; it is put on `device` and in evaluation mode.
        batches: a loader of N images; it is iterated once.
        device: where the encoder runs.
        desc: what the progress bar is called.

    Returns:
        Embeddings (N, m), float32 on the CPU.
    """
    (rows,) = embed(encoder, batches, device, desc=desc)
    return F.normalize(rows, dim=1)


def first_per_class(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Random images of each class.

    Args:
        labels: the classes of all images (N,).
        limit: how many of each class are wanted; a smaller class gives all it has.
        seed: seed of the choice.

    Returns:
        Row numbers in ascending order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = [order[labels[order] == label][:limit] for label in labels.unique()]
    return torch.cat(kept).sort().values


def check_space(
    train: ImageList, names: Sequence[str], settings: SpaceSettings, error: Callable[[str], InputError]
) -> None:
    """Checks, before anything is computed, that a space can be made.

    Args:
        train: the ID training images.
        names: the class names.
        settings: `dream.space`.
        error: makes the error that says a text about the class names.

    Raises:
        InputError: there is no such backbone, it does not fit the images, or a class has no training image.
    """
    size = train.transform.image_size
    check_backbone(settings, "network", "network_args", image_size=size, num_classes=len(names))
    counts = torch.bincount(train.labels, minlength=len(names))
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        raise error(f"class {empty} has no image in {train.imglist}; names and labels must match")


def make_space(
    anchors: Artifact,
    train: ImageList,
    val: ImageList,
    settings: SpaceSettings,
    cache_dir: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
) -> Artifact:
    """The space stage: `encoder.safetensors`; `embeddings.safetensors` with unit `embeddings` (N, m), `labels` and `rows`.

    The manifest holds the validation accuracy of the cosine classifier, in percent, and the loss of each epoch.

    Args:
        anchors: the anchors stage's artifact.
        train: the ID training images, without augmentation.
        val: the ID validation images.
        settings: `dream.space`.
        cache_dir: folder of all artifacts.
        device: where the encoder is trained: auto, cpu, mps, cuda or cuda:N.
        precision: number format of training: auto, float32 or bfloat16.
        workers: processes that decode images where they do not fit into memory.

    Returns:
        The artifact; `load_space` and `load_encoder` read it.

    Raises:
        InputError: the backbone is not there, or refuses its arguments; an image cannot be read.
    """
    inputs = {
        "anchors": anchors.hash,
        "space": settings.encoding,
        "train": train.identity,
        "val": val.identity,
        "transform": train.transform.identity,
    }

    def make(folder: Path) -> dict[str, Any]:
        return _write_space(folder, load_anchors(anchors), train, val, settings, device, precision, workers)

    label = f"{settings.network.removeprefix('timm:')}-{settings.epochs}epochs"
    return build(cache_dir, "space", inputs, make, label=label)


def _write_space(
    folder: Path,
    anchors: Tensor,
    train: ImageList,
    val: ImageList,
    settings: SpaceSettings,
    device: str,
    precision: str,
    workers: int,
) -> dict[str, Any]:
    """Trains the encoder, and writes it and the embeddings; returns what the manifest says."""
    place = pick_device(device)
    torch.manual_seed(settings.seed)
    encoder = make_encoder(settings, anchors.shape[1], train.transform.image_size)
    batches = placed(loader(train.augmented(), settings.batch_size, shuffle=True, workers=workers), place)
    with enough_memory(partial(settings.error, "batch_size"), f"{settings.batch_size} images in a step"):
        size = train.transform.image_size
        dtype = measured_dtype(precision, encoder, image_size=size, channels=3, device=place)
        losses = train_encoder(encoder, batches, anchors, settings, place, dtype, folder / STATE)
    seen = unit_embeddings(encoder, loader(val, BATCH, shuffle=False, workers=workers), place)
    guesses = cosine_logits(seen, anchors, settings.temperature).argmax(1)
    accuracy = 100 * (guesses == val.labels).float().mean().item()
    if not torch.isfinite(seen).all():
        raise FloatingPointError(f"space: an embedding is not finite; lower {settings.key('lr')} ({settings.lr:g})")
    embeddings = unit_embeddings(encoder, loader(train, BATCH, shuffle=False, workers=workers), place)
    rows = first_per_class(train.labels, settings.per_class, settings.seed)
    labels = train.labels[rows]
    write_tensors(folder / "encoder.safetensors", **encoder.state_dict())
    write_tensors(folder / "embeddings.safetensors", embeddings=embeddings[rows], labels=labels, rows=rows)
    (folder / STATE).unlink()
    about = {"val_accuracy": round(accuracy, 2), "losses": losses, "per_class": torch.bincount(labels).tolist()}
    return about | {"warnings": _doubts(accuracy, val.labels, settings)}


def above_chance(share: float, chance: float, count: int) -> bool:
    """Whether a share of right answers is more than two standard deviations above that of chance.

    Args:
        share: of the answers, 0 to 1.
        chance: the share that guessing gives.
        count: of the answers.
    """
    return share > chance + 2 * math.sqrt(chance * (1 - chance) / count)


def _doubts(accuracy: float, labels: Tensor, settings: SpaceSettings) -> list[str]:
    """What is doubtful about a space whose cosine classifier has an accuracy (in percent) on validation images."""
    chance = 100 * torch.bincount(labels).max().item() / len(labels)  # of who always names the largest class
    if above_chance(accuracy / 100, chance / 100, len(labels)):
        return []
    return [
        f"the space knows {accuracy:.1f} % of the validation images, no more than chance ({chance:.1f} %), so its outliers "
        f"mean nothing; raise {settings.key('epochs')} ({settings.epochs}), or lower {settings.key('lr')} ({settings.lr:g})"
    ]


def load_space(artifact: Artifact) -> dict[str, Tensor]:
    """`embeddings` (N, m), `labels` (N,) and `rows` (N,) in the training list, of a space artifact."""
    return read_tensors(artifact.path / "embeddings.safetensors", embeddings=2, labels=1)


def load_encoder(artifact: Artifact, settings: SpaceSettings, dim: int, image_size: int) -> Encoder:
    """The trained encoder h, in evaluation mode.

    Args:
        artifact: the space stage's.
        settings: the `dream.space` that it was made with.
        dim: the width m of its embeddings.
        image_size: pixels a side of its images.
    """
    encoder = make_encoder(settings, dim, image_size)
    load_into(encoder, artifact.path / "encoder.safetensors")
    return encoder.eval()
