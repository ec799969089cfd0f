"""The loop around a trainer's epochs: validation, checkpoints, scalars, and going on after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from openood_dream.datasets.images import ImageList
from openood_dream.parallel.processes import Processes
from openood_dream.parallel.state import read_state, restoring, set_random_state, write_state
from openood_dream.store.files import Kinds
from openood_dream.store.tensors import write_checkpoint
from openood_dream.trainers.base import BaseTrainer

TRAINING = "training.ckpt"  # what an interrupted training goes on from

STATE: Kinds = {"identity": str, "epoch": int, "best": float, "history": list, "trainer": dict}  # parts of it
History = list[dict[str, Any]]  # of each epoch "epoch", "loss", "terms" and "val_acc"


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
    processes: Processes,
) -> History:
    """Trains a network, and keeps the weights of its best and its last epoch.

    Leaves in `out` best.ckpt, of the epoch that `validate` finds best (the last of equals), and last_epoch*_acc*.ckpt.
    After each epoch training.ckpt is renewed. TensorBoard, where it is installed, gets the scalars.

    Args:
        trainer: trains an epoch at a time.
        validate: the accuracy in 0..1 of a network; called in the main process.
        out: the run's folder.
        epochs: how many epochs.
        seed: seed of the order of images where there are several processes.
        identity: what decides the outcome of the training, as a hash.
        resume: whether a training of the same identity that was interrupted goes on; it ends as if it had not been.
            Where there are several processes all get what the main one remembered of features.
        title: of the progress bar.
        processes: those that train together; each must call this function.

    Returns:
        The history: epoch, mean loss, its terms, and val_acc in percent of each epoch.

    Raises:
        InputError: training.ckpt is damaged, or of another number of processes.
        FloatingPointError: the loss is no longer a number.
    """
    progress = _Progress(trainer, validate, out, identity)
    done = progress.read(processes) if resume else 0
    board = scalars(out, done) if processes.is_main else None
    with processes.progress(total=epochs, initial=done, desc=title, unit="epoch") as bar:
        for epoch in range(done + 1, epochs + 1):
            processes.begin_epoch(trainer.loaders(), seed, epoch)
            for images in (loader.dataset for loader in trainer.loaders()):
                if isinstance(images, ImageList):
                    images.epoch = epoch
            _, metrics = trainer.train_epoch(epoch)
            if processes.is_main:
                row = progress.add(epoch, metrics)
                record(board, row, trainer.optimizer.param_groups[0]["lr"])
                bar.set_postfix(loss=f"{row['loss']:.3f}", val_acc=f"{row['val_acc']:.1f}")
            progress.write(epoch, processes)
            bar.update()
    if board is not None:
        board.close()
    if processes.is_main:
        for old in out.glob("last_epoch*.ckpt"):
            old.unlink()
        save_weights(trainer.result, out / f"last_epoch{epochs}_acc{progress.history[-1]['val_acc'] / 100:.4f}.ckpt")
    return processes.broadcast(progress.history)


class _Progress:
    """How far a training has come: the epochs' history and the best of them, which training.ckpt holds too."""

    def __init__(self, trainer: BaseTrainer, validate: Callable[[nn.Module], float], out: Path, identity: str) -> None:
        self.trainer, self.validate, self.out, self.identity = trainer, validate, out, identity
        self.best, self.history = -1.0, History()

    def add(self, epoch: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The history's row of an epoch; keeps the weights if they are the best so far."""
        accuracy = self.validate(self.trainer.result)
        row = {"epoch": epoch, "loss": metrics["loss"], "terms": metrics["terms"], "val_acc": 100 * accuracy}
        self.history.append(row)
        if accuracy >= self.best:
            self.best = accuracy
            save_weights(self.trainer.result, self.out / "best.ckpt")
        return row

    def write(self, epoch: int, processes: Processes) -> None:
        parts = {
            "identity": self.identity,
            "epoch": epoch,
            "best": self.best,
            "history": self.history,
            "trainer": self.trainer.state_dict(),
        }
        write_state(self.out / TRAINING, processes, parts)

    def read(self, processes: Processes) -> int:
        """Goes on from training.ckpt if it is of this training; returns how many epochs are done."""
        state = read_state(self.out / TRAINING, processes, STATE)
        if state is None or state["identity"] != self.identity:
            return 0
        with restoring(self.out / TRAINING):
            self.trainer.load_state_dict(state["trainer"])
            self.best, self.history = state["best"], state["history"]
            set_random_state(state, processes)
        return state["epoch"]


def scalars(out: Path, done: int) -> Any | None:
    """A TensorBoard writer, or None where TensorBoard is not installed.

    Args:
        out: the run's folder.
        done: epochs that an earlier part of the training has written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)


def record(board: Any | None, row: dict[str, Any], rate: float) -> None:
    """Adds an epoch to TensorBoard.

    Args:
        board: its writer, or None.
        row: the history's row of the epoch.
        rate: the learning rate after it.
    """
    if board is None:
        return
    named = {"loss": row["loss"], "val_acc": row["val_acc"], "learning_rate": rate}
    for name, value in (named | {f"terms/{name}": v for name, v in row["terms"].items()}).items():
        board.add_scalar(name, value, row["epoch"])


def save_weights(net: nn.Module, path: Path) -> None:
    """Saves a network's tensors in OpenOOD's form, a state dict, by rename.

    Args:
        net: the network.
        path: the file.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_checkpoint(path, state)
