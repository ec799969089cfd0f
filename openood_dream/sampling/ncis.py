"""Outliers that break what the embeddings of a class have in common: NCIS (Doorenbos et al., arXiv 2411.13619, Sec. 3.2 and 3.3).

A volume-preserving network y = f(x, class) is trained so that its last q outputs, the *invariants*, are about zero for all
embeddings of a class. Volumes being preserved, a point that is unlikely as y is as unlikely as x: outliers are drawn as y,
where a Gaussian fits, and go back to x by the network's inverse.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openood_dream.losses import virtual_outliers
from openood_dream.sampling.knn import round_seed

RIDGE = 1e-5  # on the diagonal of a class's covariance
LAST_RATE = 0.1  # what the learning rate falls to, of what it begins with


class Coupling(nn.Module):
    """What the second half of a vector adds to its first half: an MLP that knows the class.

    Args:
        width: numbers in a vector, m.
        classes: how many classes there are.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        half, hidden = width // 2, 4 * (width - width // 2)
        self.before = nn.Sequential(nn.Linear(width - half, hidden), nn.Sigmoid(), nn.Linear(hidden, hidden))
        self.after = nn.Sequential(nn.Sigmoid(), nn.Linear(hidden, hidden), nn.Sigmoid(), nn.Linear(hidden, half))
        self.of_class = nn.Embedding(classes, hidden)

    def forward(self, rest: Tensor, labels: Tensor) -> Tensor:
        """What is added to the first half.

        Args:
            rest: the second half (B, m - m // 2).
            labels: the classes (B,).

        Returns:
            (B, m // 2).
        """
        return self.after(self.before(rest) + self.of_class(labels))


class VolumePreserving(nn.Module):
    """f: rotations, each with a shift, and additive couplings between them; |det J| is 1 whatever the weights are.

    A rotation is the matrix exponential of a skew-symmetric matrix.

    Args:
        width: numbers in a vector, m, 2 or more.
        classes: how many classes there are.
        pairs: couplings; there is a rotation before each and one at the end.
    """

    def __init__(self, width: int, classes: int, pairs: int = 4) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width, classes) for _ in range(pairs))
        self.skew = nn.Parameter(torch.empty(pairs + 1, width, width).uniform_(-torch.pi, torch.pi))
        self.shift = nn.Parameter(torch.empty(pairs + 1, width).uniform_(-1, 1) / width**0.5)

    def rotations(self) -> Tensor:
        """The rotations (pairs + 1, m, m)."""
        upper = self.skew.triu(1)
        return torch.matrix_exp(upper - upper.mT)

    def forward(self, x: Tensor, labels: Tensor, rotations: Tensor | None = None) -> Tensor:
        """y (B, m) of x (B, m).

        Args:
            x: vectors (B, m).
            labels: their classes (B,).
            rotations: what `rotations` returns, where it is at hand.
        """
        turns = self.rotations() if rotations is None else rotations
        half = x.shape[1] // 2
        for number, coupling in enumerate(self.couplings):
            x = x @ turns[number].T + self.shift[number]
            first, rest = x[:, :half], x[:, half:]
            x = torch.cat([first + coupling(rest, labels), rest], dim=1)
        return x @ turns[-1].T + self.shift[-1]

    def inverse(self, y: Tensor, labels: Tensor, rotations: Tensor | None = None) -> Tensor:
        """The x (B, m) of y (B, m); arguments as those of `forward`.

        Args:
            y: vectors (B, m).
            labels: their classes (B,).
            rotations: what `rotations` returns, where it is at hand.
        """
        turns = self.rotations() if rotations is None else rotations
        half = y.shape[1] // 2
        y = (y - self.shift[-1]) @ turns[-1]
        for number in reversed(range(len(self.couplings))):
            first, rest = y[:, :half], y[:, half:]
            y = torch.cat([first - self.couplings[number](rest, labels), rest], dim=1)
            y = (y - self.shift[number]) @ turns[number]
        return y


def count_invariants(x: Tensor, labels: Tensor, share: float = 0.05) -> int:
    """How many directions vary so little within a class that together they have no more than a share of its variance.

    By a principal component analysis of each class, averaged over the classes; the component that crosses the line counts.

    Args:
        x: embeddings (N, m).
        labels: their classes (N,), each class with two or more.
        share: of the variance.

    Returns:
        q, in 1..m - 1.
    """
    counts, width = [], x.shape[1]
    for label in labels.unique():
        rows = x[labels == label].double()
        variances = torch.linalg.svdvals(rows - rows.mean(0)).square()
        explained = variances.cumsum(0) / variances.sum()
        counts.append(width - int((explained <= 1 - share).sum()))
    return min(max(sum(counts) // len(counts), 1), width - 1)


def invariance_loss(net: VolumePreserving, x: Tensor, labels: Tensor, invariants: int) -> Tensor:
    """Mean squared invariants, and mean squared error of x where they are set to zero and the network is run back.

    Args:
        net: f.
        x: embeddings (B, m).
        labels: their classes (B,).
        invariants: q.
    """
    rotations = net.rotations()
    y = net(x, labels, rotations)
    kept = y.shape[1] - invariants
    again = net.inverse(F.pad(y[:, :kept], (0, invariants)), labels, rotations)
    return y[:, kept:].square().mean() + F.mse_loss(again, x)


def train(
    net: VolumePreserving,
    x: Tensor,
    labels: Tensor,
    invariants: int,
    *,
    epochs: int = 200,
    batch_size: int = 64,
    lr: float = 1e-4,
    seed: int = 0,
) -> Iterator[float]:
    """Trains f by `invariance_loss`: Adam, with a rate that falls in a straight line to a tenth.

    Args:
        net: f, on the device of x; its weights change.
        x: embeddings (N, m) of all classes.
        labels: their classes (N,).
        invariants: q.
        epochs: passes over the embeddings.
        batch_size: embeddings in a step.
        lr: learning rate at the start.
        seed: of their order.

    Yields:
        The mean loss of each epoch.

    Raises:
        ValueError: the loss is no longer a number.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr)
    generator, steps = torch.Generator().manual_seed(seed), epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, LAST_RATE, total_iters=steps)
    for _ in range(epochs):
        total = torch.zeros((), device=x.device)
        order = torch.randperm(len(x), generator=generator).to(x.device)  # drawn on the CPU, the same everywhere
        for rows in order.split(batch_size):
            loss = invariance_loss(net, x[rows], labels[rows], invariants)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(rows) / len(x)
        if not total.isfinite():
            raise ValueError(f"the loss of the volume-preserving network is not finite; lower lr ({lr:g})")
        yield total.item()


@torch.no_grad()
def sample(
    net: VolumePreserving,
    x: Tensor,
    label: int,
    *,
    draws: int = 3330,
    keep: int = 10,
    rounds: int = 10,
    seed: int = 0,
) -> Tensor:
    """Outliers of one class: the least likely of many draws from a Gaussian around its y, run back through f.

    Args:
        net: f, trained.
        x: embeddings (N, m) of the class.
        label: the class.
        draws: draws of a round.
        keep: how many of them are kept, the least likely.
        rounds: repetitions with fresh draws.
        seed: seed of the draws.

    Returns:
        Outliers (rounds * keep, m), in the format of x.

    Raises:
        ValueError: keep is not in 1..draws.
    """
    y = net(x, torch.full((len(x),), label, device=x.device)).double()
    mean, covariance = y.mean(0, keepdim=True), y.T.cov()
    covariance += RIDGE * torch.eye(len(covariance), dtype=y.dtype, device=y.device)
    found = []
    for number in range(rounds):
        generator = torch.Generator().manual_seed(round_seed(seed, label, number))
        found.append(virtual_outliers(mean, covariance, draws, keep, generator))
    drawn = torch.cat(found).to(x)
    return net.inverse(drawn, torch.full((len(drawn),), label, device=x.device))


@torch.no_grad()
def violation(net: VolumePreserving, x: Tensor, label: int, invariants: int) -> float:
    """How far embeddings of a class are from keeping its invariants: the mean of their squares.

    Args:
        net: f.
        x: embeddings (N, m).
        label: the class.
        invariants: q.
    """
    y = net(x, torch.full((len(x),), label, device=x.device))
    return y[:, -invariants:].square().mean().item()
