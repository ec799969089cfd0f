"""Phase 2a: outlier and inlier embeddings in the space, class by class, by the sampler that `dream.outliers` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from openood_dream import plugins
from openood_dream.device import pick_device
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.samplers import OutlierSettings, Sampler, get_sampler
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError
from openood_dream.sampling.knn import Index, check_rows, knn_distance
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.files import AGAIN
from openood_dream.store.tables import INTEGERS, NUMBERS, read_table, write_table
from openood_dream.store.tensors import Rows, read_rows, read_tensors, write_index, write_tensors

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}
OUTLIERS = {"class": INTEGERS, "boundary": INTEGERS, "distance": NUMBERS}  # columns of outliers.parquet
SCALARS = ("sigma", "invariants", "id_violation", "violation")  # which of them a class has depends on it too
COLUMNS = ("steps", "target", "seed", "draw")  # which of them an embedding has depends on the sampler


def make_outliers(
    anchors: Artifact,
    space: Artifact,
    names: Sequence[str],
    settings: OutlierSettings,
    temperature: float,
    cache_dir: str | Path,
    *,
    device: str = "auto",
) -> Artifact:
    """The outliers stage: `embeddings` (M, m), class by class and as long as the anchor of their class, and their table.

    So they can take the place of the class's token. The table `outliers.parquet` has a row for each: class, boundary
    (the row of the boundary point, or of the embedding that crossed, in the space artifact), distance (d_k), steps and
    target (boundary crossing), seed and draw (k-NN). Boundary crossing writes `crossings.parquet` too: class, boundary,
    steps and target of every ID embedding. The manifest has a list of `classes` with the number of embeddings, sigma
    (k-NN), the number of invariants and how far they are kept (NCIS), and quantiles of d_k of ID embeddings and of those found.

    Args:
        anchors: the anchors stage's artifact.
        space: the space stage's artifact.
        names: the class names.
        settings: `dream.outliers`.
        temperature: t of the space's cosine classifier.
        cache_dir: folder of all artifacts.
        device: where to search: auto, cpu, mps, cuda or cuda:N.

    Returns:
        The artifact; `load_outliers` reads it.

    Raises:
        InputError: the settings do not fit the embeddings, or embeddings cannot be used.
    """
    sampler = get_sampler(settings)
    targets, id_tensors = load_anchors(anchors), load_space(space)
    _check_anchors_and_space(targets, id_tensors, names, anchors, space)
    sampler.check_counts(id_tensors["labels"].bincount().tolist(), names)
    inputs = {"space": space.hash, "outliers": sampler.identity | plugins.identity(type(sampler))}

    def make(folder: Path) -> dict[str, Any]:
        todo = [label for label in range(len(names)) if not _part(folder, label).exists()]
        done = len(names) - len(todo)
        sample = _Sampling(sampler, id_tensors, targets, temperature, pick_device(device))
        if todo:
            sample.learn(folder)
        with tqdm(total=len(names), initial=done, desc="outliers: sampling", unit="class") as bar:
            for label in todo:
                try:
                    found = sample(label)
                except ValueError as error:
                    raise settings.error("", f"class {names[label]!r}: {error}") from None
                write_tensors(_part(folder, label), **found)
                bar.update()
        return {"classes": _join(folder, names)}

    return build(cache_dir, "outliers", inputs, make, label=settings.label)


class _Sampling:
    """Samples in a space, a class at a call; what it returns for a class is the content of its file."""

    def __init__(
        self, sampler: Sampler, known: dict[str, Tensor], anchors: Tensor, temperature: float, device: torch.device
    ) -> None:
        if device.type == "mps":  # which has no float64
            device = torch.device("cpu")
        self.sampler, self.known, self.device = sampler, known, device
        self.anchors, self.temperature = anchors.to(device), temperature
        everyone = sampler.settings.neighbours == "all"
        self.index = Index.of(known["embeddings"], device) if everyone else None

    def learn(self, folder: Path) -> None:
        """Lets the sampler learn from all classes; InputError where it cannot."""
        z, labels = (self.known[name].to(self.device) for name in ("embeddings", "labels"))
        try:
            self.sampler.learn(z, labels, folder)
        except ValueError as error:
            raise self.sampler.settings.error("", str(error)) from None

    def __call__(self, label: int) -> dict[str, Tensor]:
        rows = (self.known["labels"] == label).nonzero()[:, 0]
        z = self.known["embeddings"][rows].to(self.device)
        found = self.sampler.sample(z, label, self.anchors, self.temperature, self.index)
        bad = [name for name, column in found.items() if not torch.isfinite(column).all()]
        if bad:
            raise ValueError(
                f"{bad[0]} that are not finite numbers; the sampler's settings are out of reach of numbers"
            )
        embeddings, boundary = found.pop("embeddings"), rows[found.pop("boundary").cpu()]
        return found | {
            # a name of its own in each file, as the index of a tensor in several files wants it
            f"embeddings.{label}": embeddings * self.anchors[label].norm(),
            "boundary": boundary,
            "id_distance": knn_distance(z, z if self.index is None else self.index, self.sampler.settings.k),
            "rows": rows,
        }


def load_outliers(artifact: Artifact) -> tuple[pd.DataFrame, Rows]:
    """The table of an outliers artifact and its embeddings (M, m), of which only what is used is read into memory."""
    path, embeddings = artifact.path / "outliers.parquet", read_rows(artifact.path, "embeddings")
    table = read_table(path, OUTLIERS)
    if len(table) != len(embeddings):
        raise InputError(f"{path}: {len(table)} rows for {len(embeddings)} embeddings; {AGAIN}")
    return table, embeddings


def quantiles(values: np.ndarray) -> dict[str, float]:
    """The QUANTILES of numbers (N,), by name."""
    found = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def _check_anchors_and_space(
    anchors: Tensor, known: dict[str, Tensor], names: Sequence[str], source: Artifact, space: Artifact
) -> None:
    """Raises InputError where anchors and space do not fit each other, or a row of either cannot be used."""
    file, again = space.path / "embeddings.safetensors", "delete its folder and run again"
    z, labels = known["embeddings"], known["labels"]
    try:
        check_rows(f"{source.path / 'anchors.safetensors'}: anchors", anchors)
        check_rows(f"{file}: embeddings", z)
    except ValueError as error:
        raise InputError(str(error)) from None
    if z.shape[1] != anchors.shape[1]:
        raise InputError(f"{file}: embeddings of {z.shape[1]} dimensions for anchors of {anchors.shape[1]}; {again}")
    off = (z.norm(dim=1) - 1).abs()
    if off.max() > 1e-3:
        row = int(off.argmax())
        raise InputError(f"{file}: embeddings: row {row} has norm {z[row].norm():.4g}, expected 1; {again}")
    absent = [label for label in range(len(anchors)) if not (labels == label).any()]
    if absent:
        raise InputError(
            f"{file}: no embedding of class {names[absent[0]]!r}: {len(anchors)} anchors, and embeddings of "
            f"{len(anchors) - len(absent)} classes; give every class of dream.class_names training images"
        )


def _part(folder: Path, label: int) -> Path:
    """Where what was found for one class lies. It depends on the settings and the class alone."""
    return folder / "classes" / f"{label:06d}.safetensors"


def _join(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Writes the tables and the index of the classes' embeddings; returns what the manifest says of each class."""
    frames, crossings, classes = [], [], []
    for label, name in enumerate(names):
        found = read_tensors(_part(folder, label), boundary=1, distance=1, id_distance=1, rows=1)
        frames.append(_table(label, found))
        about: dict[str, Any] = {"name": name, "embeddings": len(found["boundary"])}
        about |= {scalar: found[scalar].item() for scalar in SCALARS if scalar in found}
        if "all_steps" in found:
            steps, target = found["all_steps"].numpy(), found["all_target"].numpy()
            about["crossed"] = float(np.mean(steps > 0))
            frame = {"class": label, "boundary": found["rows"].numpy(), "steps": steps, "target": target}
            crossings.append(pd.DataFrame(frame))
        about["id_distance"] = quantiles(found["id_distance"].numpy())
        about["distance"] = quantiles(found["distance"].numpy())
        classes.append(about)
    write_table(folder / "outliers.parquet", pd.concat(frames, ignore_index=True))
    if crossings:
        write_table(folder / "crossings.parquet", pd.concat(crossings, ignore_index=True))
    write_index(folder, "embeddings", [_part(folder, label) for label in range(len(names))])
    return classes


def _table(label: int, found: dict[str, Tensor]) -> pd.DataFrame:
    """The rows of a class in `outliers.parquet`."""
    columns = {column: pd.array(found[column].numpy(), "Int64") if column in found else pd.NA for column in COLUMNS}
    frame = {"class": label, "boundary": found["boundary"].numpy(), "distance": found["distance"].numpy()}
    return pd.DataFrame(frame | columns).astype(dict.fromkeys(columns, "Int64"))
