"""The loop around a trainer's epochs: validation, checkpoints, scalars, and going on after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from openood_dream import store
from openood_dream.config import InputError
from openood_dream.trainers import processes
from openood_dream.trainers.base import BaseTrainer, bare

TRAINING = "training.ckpt"  # what an interrupted training goes on from


def fit(
    trainer: BaseTrainer,
    validate: Callable[[nn.Module], float],
    out: Path,
    *,
    epochs: int,
    seed: int,
    identity: str,
    resume: bool,
    title: str,
) -> list[dict[str, Any]]:
    """Trains for `epochs` epochs and returns the history: epoch, mean loss, its terms, and val_acc in percent of each.

    Leaves in `out` best.ckpt, of the epoch that `validate` finds best (the last of equals), and last_epoch*_acc*.ckpt.
    After each epoch training.ckpt is renewed; with `resume` a training of the same `identity` that was interrupted goes
    on from there, and ends as if it had not been. TensorBoard, where it is installed, gets the scalars.
    """
    history: list[dict[str, Any]] = []
    best, state = -1.0, read(out / TRAINING, identity) if resume else None
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        best, history = state["best"], state["history"]
        torch.set_rng_state(state["random"])
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], trainer.device)
    board = scalars(out, len(history)) if processes.first() else None
    quiet = {} if processes.first() else {"disable": True}
    with tqdm(total=epochs, initial=len(history), desc=title, unit="epoch", **quiet) as bar:
        for epoch in range(len(history) + 1, epochs + 1):
            processes.begin_epoch(trainer.loaders(), seed, epoch)
            _, metrics = trainer.train_epoch(epoch)
            if not processes.first():
                continue
            val = validate(bare(trainer.net))
            row = {"epoch": epoch, "loss": metrics["loss"], "terms": metrics["terms"], "val_acc": 100 * val}
            history.append(row)
            if val >= best:
                best = val
                save_weights(bare(trainer.net), out / "best.ckpt")
            state = {"identity": identity, "best": best, "history": history, "random": torch.get_rng_state()}
            if trainer.device.type == "cuda":
                state["cuda_random"] = torch.cuda.get_rng_state(trainer.device)
            store.write_checkpoint(out / TRAINING, state | {"trainer": trainer.state_dict()})
            if board is not None:
                rate = trainer.optimizer.param_groups[0]["lr"]
                named = {"loss": row["loss"], "val_acc": row["val_acc"], "learning_rate": rate}
                for name, value in (named | {f"terms/{name}": v for name, v in row["terms"].items()}).items():
                    board.add_scalar(name, value, epoch)
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", val_acc=f"{row['val_acc']:.1f}")
    if board is not None:
        board.close()
    if processes.first():
        for old in out.glob("last_epoch*.ckpt"):
            old.unlink()
        save_weights(bare(trainer.net), out / f"last_epoch{epochs}_acc{history[-1]['val_acc'] / 100:.4f}.ckpt")
    return history


def read(path: Path, identity: str) -> dict[str, Any] | None:
    """The state of an interrupted training of this identity, or None; InputError names a damaged file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # torch reports a damaged file through many exception types
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start again"
        ) from None
    return state if state["identity"] == identity else None


def scalars(out: Path, done: int) -> Any | None:
    """A TensorBoard writer that goes on after `done` epochs, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)


def save_weights(net: nn.Module, path: Path) -> None:
    """Saves a network's tensors in OpenOOD's form (a state dict), by rename."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    store.write_checkpoint(path, state)
