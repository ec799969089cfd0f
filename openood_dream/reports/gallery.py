"""Seeing what was imagined: figures of the stages' artifacts, which are made first where they are not there yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream.datasets.imglist import read_imglist
from openood_dream.datasets.reading import read_image
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.chain import Dream
from openood_dream.dream.image_set import listed, read_images
from openood_dream.dream.lines import load_lines
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.plain import CLASSES, spread
from openood_dream.dream.samplers import SAMPLERS, OutlierSettings
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError, nearest
from openood_dream.experiment import Experiment
from openood_dream.extras import check_installed
from openood_dream.reports import plots
from openood_dream.reports.embedding_map import Sampled, embedding_map
from openood_dream.sampling.knn import knn_distance

COLUMNS = 12  # images in a row
DROPPED = 4  # of them, where a filter dropped some
NOISES = 4  # lines of a single class
KINDS = {
    "knn": "k-NN outlier",
    "boundary": "crossing outlier",
    "ncis": "NCIS outlier",
    "inlier": "inlier",
    "plain": "plain prompt",
}


def embeddings(experiments: Mapping[str, Experiment], classes: Sequence[str] = (), method: str = "pca") -> bytes:
    """What the outliers stage of each experiment found, with ID embeddings and anchors, in a plane, as PNG.

    Args:
        experiments: experiments of one latent space, by their labels.
        classes: the names of the classes to show; all where it is empty.
        method: pca or umap.

    Raises:
        InputError: an unknown class, another space, or a package of the extras is missing.
    """
    if method == "umap":
        check_installed("--method umap", "umap")
    dreams = {label: experiment.imagination for label, experiment in experiments.items()}
    dream = next(iter(dreams.values()))
    names, shown = dream.names, chosen(dream.names, classes)
    space, anchors = common_space(dreams), load_anchors(dream.anchors)
    z, labels = space["embeddings"], space["labels"]
    here = torch.isin(labels, torch.tensor(shown))
    sampled = [_sampled(kind, one, shown, z) for kind, one in by_kind(dreams).items()]
    return embedding_map(
        z[here].numpy(),
        torch.searchsorted(torch.tensor(shown), labels[here]).numpy(),
        _id_distances(dream.settings.outliers, space, shown).numpy(),
        [names[label] for label in shown],
        anchors[shown].numpy(),
        sampled,
        z[~here].numpy(),
        method,
        f"Text-conditioned latent space{_which(shown, names)}, {method.upper()}",
    )


def grid(experiments: Mapping[str, Experiment], classes: Sequence[str] = ()) -> bytes:
    """Images of each experiment with their k-NN distances, beside ID images, as PNG.

    From near to far; where a filter chose, the kept ones first and then some that it dropped, marked as such. Rows are
    grouped by class where there is one experiment, else by experiment.

    Args:
        experiments: experiments of the same classes, by their labels.
        classes: the names of the classes to show; at most CLASSES of all where it is empty.

    Raises:
        InputError: an unknown class.
    """
    dreams = {label: experiment.imagination for label, experiment in experiments.items()}
    first = next(iter(experiments.values()))
    names = first.imagination.names
    shown = few(chosen(names, classes), classes)
    train = first.data.images("dataset", "train")
    of_labels = [(train.labels == label).nonzero()[:COLUMNS, 0].tolist() for label in shown]
    blocks = {"ID image": [plots.Row("", [np.asarray(train.image(row)) for row in rows]) for rows in of_labels]}
    blocks |= {kind: _imagined(one, shown) for kind, one in by_kind(dreams).items()}
    rows: list[plots.Row] = []
    if len(experiments) == 1:
        for number, label in enumerate(shown):
            for kind, block in blocks.items():
                row = block[number]
                rows.append(row._replace(label=f"{names[label]}: {kind}\n{row.label}".strip()))
    else:
        for kind, block in blocks.items():
            rows.append(plots.Row(kind + ("" if kind == "ID image" else ", from near to far"), []))
            rows += [row._replace(label=f"{names[label]}\n{row.label}".strip()) for label, row in zip(shown, block)]
    filtered = any(row.kept is not None for row in rows)
    order = "Imagined, kept images first" if filtered else "Imagined from near to far"
    return plots.image_grid(rows, f"{order}, with k-NN distances{_which(shown, names)}")


def line(experiment: Experiment, classes: Sequence[str] = ()) -> bytes:
    """A class's images along the line from its anchor to its farthest outlier, drawn in one noise, as PNG.

    One class has NOISES rows, several have one each. Below the images stands the k-NN distance of their embedding.

    Args:
        experiment: whose imagination.
        classes: the names of the classes to show; at most CLASSES of all where it is empty.

    Raises:
        InputError: an unknown class.
    """
    dream = experiment.imagination
    names = dream.names
    shown = few(chosen(names, classes), classes)
    noises = NOISES if len(shown) == 1 else 1
    lines, drawn = load_lines(dream.lines(shown, noises))
    space, settings = load_space(dream.embedded), dream.settings.outliers
    rows: list[plots.Row] = []
    for label, tokens, images in zip(shown, lines, drawn.permute(0, 1, 2, 4, 5, 3).numpy()):
        distances = knn_distance(F.normalize(tokens, dim=1), _bank(space, label, settings.neighbours), settings.k)
        captions = ["", *(f"{distance:.3f}" for distance in distances.tolist())]
        rows += [
            plots.Row(names[label] if noises == 1 else f"noise {n + 1}", list(row), captions)
            for n, row in enumerate(images)
        ]
    title = f"From the anchor to the farthest outlier, with k-NN distances{_which(shown, names)}"
    return plots.image_lines(rows, title, np.linspace(0, 1, lines.shape[1]))


# --------------------------------------------------------------------------------------------------- what is shown


def common_space(dreams: Mapping[str, Dream]) -> dict[str, Tensor]:
    """The ID embeddings that all share, as load_space has them; InputError where they do not."""
    artifacts = {label: dream.embedded for label, dream in dreams.items()}
    common = next(iter(artifacts.values()))
    for label, artifact in artifacts.items():
        if artifact.hash != common.hash:
            raise InputError(
                f"--outliers: {label} has another latent space than {next(iter(artifacts))}; draw them apart"
            )
    return load_space(common)


def by_kind(dreams: Mapping[str, Dream]) -> dict[str, Dream]:
    """The dreams by what they sample, with their label where that alone does not tell them apart."""
    methods = [dream.settings.outliers.method for dream in dreams.values()]
    kinds = [KINDS.get(method, method) for method in methods]
    return {
        kind if kinds.count(kind) == 1 else f"{kind}, {label}": dream
        for kind, (label, dream) in zip(kinds, dreams.items())
    }


def chosen(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The labels of some classes in ascending order.

    Args:
        names: of all classes.
        classes: names of those to show; all where it is empty.

    Raises:
        InputError: a name that is none.
    """
    for name in classes:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near!r}?" if near else f"expected one of dream.class_names, such as {names[0]!r}"
            raise InputError(f"--class: unknown {name!r}; {hint}")
    return sorted({names.index(name) for name in classes}) or list(range(len(names)))


def few(labels: Sequence[int], asked: Sequence[str]) -> list[int]:
    """As many labels as a figure has room for.

    Args:
        labels: that could be shown.
        asked: the names that the user asked for; if there are some, all labels are shown, else CLASSES at most.
    """
    return list(labels) if asked else [labels[i] for i in spread(len(labels), CLASSES)]


def _imagined(dream: Dream, labels: Sequence[int]) -> list[plots.Row]:
    """Imagined images of each class, from near to far; where a filter chose, first what it kept."""
    folder, ends = dream.images.path, dream.outliers.manifest["classes"]
    table, found, filtered = (
        listed(read_images(folder)).sort_values("distance", kind="stable"),
        [],
        dream.settings.filter.active,
    )
    if filtered:
        kept_files = {file for file, _ in read_imglist(dream.quality.path / "imglist.txt")}
        table["kept"] = table["file"].isin(kept_files)
    for label in labels:
        of_class = table[table["class"] == label]
        about = f"99 % of ID < {ends[label]['id_distance']['p99']:.3f}"
        if filtered:
            about += f"\nkept {of_class['kept'].sum()} of {len(of_class)}"
            of_class = kept_first(of_class)
        else:
            of_class = of_class.iloc[spread(len(of_class), COLUMNS)]
        pictures = [picture(folder / file) for file in of_class["file"]]
        captions = [f"{distance:.3f}" for distance in of_class["distance"]]
        found.append(plots.Row(about, pictures, captions, of_class["kept"].tolist() if filtered else None))
    return found


def kept_first(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that show what a filter keeps, and then what it drops.

    Args:
        table: images in their order, with a column `kept`.

    Returns:
        COLUMNS of them at most, spread over the kept and the dropped: DROPPED of these, and more where few are kept.
    """
    kept, dropped = table[table["kept"]], table[~table["kept"]]
    room = min(len(kept), COLUMNS - min(DROPPED, len(dropped)))
    parts = [of.iloc[spread(len(of), count)] for of, count in ((kept, room), (dropped, COLUMNS - room)) if len(of)]
    return pd.concat(parts)


def picture(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    return np.array(read_image(path))


def _sampled(kind: str, dream: Dream, labels: Sequence[int], z: Tensor) -> Sampled:
    """The outliers of some classes, around the ID embeddings z (N, m)."""
    table, found = load_outliers(dream.outliers)
    table = table[table["class"].isin(labels)]
    ends = np.array([_unit(of_class["id_distance"]["p99"]) for of_class in dream.outliers.manifest["classes"]])
    return Sampled(
        kind,
        found[torch.tensor(table.index)].numpy(),
        table["distance"].to_numpy() / ends[table["class"].to_numpy()],
        z[torch.tensor(table["boundary"].unique())].numpy(),
        inliers=SAMPLERS[dream.settings.outliers.method].keeps_class,
    )


def _which(shown: Sequence[int], names: Sequence[str]) -> str:
    """How a title says which classes are shown, where it is not all of them."""
    if len(shown) == len(names):
        return ""
    return f": {names[shown[0]]}" if len(shown) == 1 else f", {len(shown)} of {len(names)} classes"


def _bank(space: Mapping[str, Tensor], label: int, neighbours: str) -> Tensor:
    """The embeddings that count as neighbours of a class."""
    return space["embeddings"] if neighbours == "all" else space["embeddings"][space["labels"] == label]


def _id_distances(settings: OutlierSettings, space: Mapping[str, Tensor], labels: Sequence[int]) -> Tensor:
    """d_k of the ID embeddings of some classes, over the 99th percentile of their class."""
    parts = []
    for label in tqdm(labels, desc="plot: ID distances", unit="class", leave=False):
        z = space["embeddings"][space["labels"] == label]
        distance = knn_distance(z, _bank(space, label, settings.neighbours), settings.k).double()
        parts.append(distance / _unit(distance.quantile(0.99).item()))
    return torch.cat(parts)


def _unit(p99: float) -> float:
    """What distances are divided by: the 99th percentile of ID; 1 where that is 0, since with k 1 each finds itself."""
    return p99 or 1.0
