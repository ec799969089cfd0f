"""Seeing what was imagined: figures of the stages' artifacts, which are made first where they are not there yet."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream import anchors as anchors_stage
from openood_dream import data, generator, imagine, plots, store
from openood_dream import outliers as outliers_stage
from openood_dream import space as space_stage
from openood_dream.config import Config, GeneratorTraining, InputError, settings

CLASSES = 10  # shown of all classes, where images of each take a row
COLUMNS = 12  # images in a row
STEPS = 9  # images along a line, both ends included
NOISES = 4  # lines of a single class
KINDS = {"knn": "k-NN outlier", "boundary": "crossing outlier", "inlier": "inlier", "plain": "plain prompt"}


def embeddings(configs: dict[str, Config], classes: Sequence[str] = (), method: str = "pca") -> bytes:
    """What the outliers stage of each config found, with ID embeddings and anchors, in a plane, as PNG.

    `configs` maps labels to configs of one space, `classes` names those to show (all where it is empty), and `method`
    is pca or umap. Raises InputError for an unknown class, another space, or umap where umap-learn is not installed.
    """
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError("--method umap: umap-learn is not installed; pip install umap-learn, or choose pca")
    config = next(iter(configs.values()))
    names, shown = data.class_names(config), chosen(config, classes)
    inside, anchors = one_space(configs), anchors_stage.load(anchors_stage.run(config))
    z, labels = inside["embeddings"], inside["labels"]
    here = torch.isin(labels, torch.tensor(shown))
    sampled = []
    for kind, one in named(configs).items():
        artifact = outliers_stage.run(one)
        table, found = outliers_stage.load(artifact)
        table = table[table["class"].isin(shown)]
        ends = np.array([unit(of_class["id_distance"]["p99"]) for of_class in artifact.manifest["classes"]])
        sampled.append(
            plots.Sampled(
                kind,
                found[torch.tensor(table.index)].numpy(),
                table["distance"].to_numpy() / ends[table["class"].to_numpy()],
                z[torch.tensor(table["boundary"].unique())].numpy(),
                inliers=settings(one, "dream.outliers").method == "inlier",
            )
        )
    return plots.embedding_map(
        z[here].numpy(),
        torch.searchsorted(torch.tensor(shown), labels[here]).numpy(),
        id_distances(config, inside, shown).numpy(),
        [names[label] for label in shown],
        anchors[shown].numpy(),
        sampled,
        z[~here].numpy(),
        method,
        f"Text-conditioned latent space{which(shown, names)}, {method.upper()}",
    )


def grid(configs: dict[str, Config], classes: Sequence[str] = ()) -> bytes:
    """Images of each config from near to far, with their k-NN distances, beside ID images, as PNG.

    Rows are grouped by class where there is one config, else by config. Of many classes CLASSES are shown, unless
    `classes` names some. Raises InputError as `embeddings` does.
    """
    one_space(configs)
    config = next(iter(configs.values()))
    names, shown = data.class_names(config), few(chosen(config, classes), classes)
    train = data.id_loader(config, "train").dataset
    blocks: dict[str, list[plots.Row]] = {"ID image": []}
    for label in shown:
        rows = (train.labels == label).nonzero()[:COLUMNS, 0].tolist()
        blocks["ID image"].append(("", [np.asarray(train.image(row)) for row in rows], None))
    for kind, one in named(configs).items():
        images, ends = imagine.run(one), outliers_stage.run(one).manifest["classes"]
        table = store.read_images(images.path).sort_values("distance", kind="stable")
        blocks[kind] = []
        for label in shown:
            of_class = table[table["class"] == label]
            of_class = of_class.iloc[spread(len(of_class), COLUMNS)]
            about = f"99 % of ID < {ends[label]['id_distance']['p99']:.3f}"
            pictures = [picture(images.path / file) for file in of_class["file"]]
            blocks[kind].append((about, pictures, [f"{distance:.3f}" for distance in of_class["distance"]]))
    rows = []
    if len(configs) == 1:
        for of_class in range(len(shown)):
            for kind, block in blocks.items():
                about, *rest = block[of_class]
                rows.append((f"{names[shown[of_class]]}: {kind}\n{about}".strip(), *rest))
    else:
        for kind, block in blocks.items():
            rows.append((kind + ("" if kind == "ID image" else ", from near to far"), [], None))
            rows += [(f"{names[label]}\n{about}".strip(), *rest) for label, (about, *rest) in zip(shown, block)]
    return plots.image_grid(rows, f"Imagined from near to far, with k-NN distances{which(shown, names)}")


def line(config: Config, classes: Sequence[str] = ()) -> bytes:
    """A class's images along the line from its anchor to its farthest outlier, drawn in one noise, as PNG.

    One class has NOISES rows, several have one each. Below the images stands the k-NN distance of their embedding.
    Raises InputError as `embeddings` does.
    """
    names, shown = data.class_names(config), few(chosen(config, classes), classes)
    noises = NOISES if len(shown) == 1 else 1
    artifact = draw_lines(config, shown, noises)
    drawn = store.read_tensors(artifact.path / "line.safetensors")
    inside, s = space_stage.load(space_stage.run(config)), settings(config, "dream.outliers")
    rows = []
    for label, tokens, images in zip(shown, drawn["tokens"], drawn["images"].permute(0, 1, 2, 4, 5, 3).numpy()):
        distances = outliers_stage.knn_distance(F.normalize(tokens, dim=1), bank(inside, label, s.neighbours), s.k)
        captions = ["", *(f"{distance:.3f}" for distance in distances.tolist())]
        rows += [
            (names[label] if noises == 1 else f"noise {n + 1}", list(row), captions) for n, row in enumerate(images)
        ]
    title = f"From the anchor to the farthest outlier, with k-NN distances{which(shown, names)}"
    return plots.image_lines(rows, title, np.linspace(0, 1, STEPS))


def draw_lines(config: Config, labels: Sequence[int], noises: int) -> store.Artifact:
    """`line.safetensors`: `tokens` (L, STEPS, m) from the anchors of `labels` (L) to the farthest outlier of their
    class, and `images` (L, noises, 1 + STEPS, 3, S, S) uint8 of the plain prompt and of the tokens.

    The steps between the ends have their length, as all embeddings that are drawn, and the images of a row one noise.
    """
    dream, names = settings(config, "dream"), data.class_names(config)
    upstream, source, given = outliers_stage.run(config), generator.run(config), anchors_stage.run(config)
    inputs = {
        **imagine.set_inputs(source, upstream, names, dream.synthesis, "per_class", "shard_size", "residual"),
        "labels": list(labels),
        "noises": noises,
        "steps": STEPS,
    }

    def make(folder: Path) -> None:
        imaginer = imagine.Imaginer(imagine.load_pipeline(source, config), names, dream.synthesis)
        anchors, (table, found) = anchors_stage.load(given), outliers_stage.load(upstream)
        imagine.check_anchors(imaginer, anchors)
        # a pipeline that was trained here knows a name of several tokens by its anchor alone
        trained = isinstance(dream.generator, GeneratorTraining)
        tokens, images = [], []
        with tqdm(total=len(labels) * noises * (1 + STEPS), desc="plot: drawing lines", unit="image") as bar:
            for label in labels:
                farthest = table["distance"][table["class"] == label].idxmax()
                tokens.append(between(anchors[label], found[farthest], STEPS))
                words = None if len(given.manifest["tokens"][names[label]]) == 1 or not trained else anchors[[label]]
                for noise in range(noises):
                    seed = imagine.image_seed(dream.synthesis.seed, noise)
                    row = [imaginer(torch.tensor([label]), words, [seed])]
                    for part in tokens[-1].split(dream.synthesis.batch_size):
                        row.append(imaginer(torch.full((len(part),), label), part, [seed] * len(part)))
                    images.append(torch.cat(row))
                    bar.update(1 + STEPS)
        shape = (len(labels), noises, *images[0].shape)
        store.write_tensors(
            folder / "line.safetensors", tokens=torch.stack(tokens), images=torch.stack(images).view(shape)
        )

    return store.build(dream.cache_dir, "line", inputs, make)


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Vectors (steps, m) on the straight line from start (m,) to end (m,), stretched to lengths that change evenly."""
    share = torch.linspace(0, 1, steps)[:, None]
    lengths = torch.lerp(start.norm(), end.norm(), share)
    line = F.normalize(torch.lerp(start, end, share), dim=1) * lengths
    line[0], line[-1] = start, end  # to the last bit
    return line


# ---------------------------------------------------------------------------------------------------- what is shown


def one_space(configs: dict[str, Config]) -> dict[str, Tensor]:
    """The ID embeddings that all configs share; InputError where they do not."""
    artifacts = {label: space_stage.run(config) for label, config in configs.items()}
    common = next(iter(artifacts.values()))
    for label, artifact in artifacts.items():
        if artifact.hash != common.hash:
            raise InputError(
                f"--outliers: {label} has another latent space than {next(iter(artifacts))}; draw them apart"
            )
    return space_stage.load(common)


def named(configs: dict[str, Config]) -> dict[str, Config]:
    """The configs by what they sample, with their label where that alone does not tell them apart."""
    kinds = [KINDS[settings(config, "dream.outliers").method] for config in configs.values()]
    return {
        kind if kinds.count(kind) == 1 else f"{kind}, {label}": config
        for kind, (label, config) in zip(kinds, configs.items())
    }


def chosen(config: Config, classes: Sequence[str]) -> list[int]:
    """The labels of `classes` in ascending order, of all where it is empty; InputError for a name that is none."""
    names = data.class_names(config)
    for name in classes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"expected one of dream.class_names, {names[0]!r} for example"
            )
            raise InputError(f"--class: unknown {name!r}; {hint}")
    return sorted({names.index(name) for name in classes}) or list(range(len(names)))


def few(labels: Sequence[int], asked: Sequence[str]) -> list[int]:
    """All labels that were asked for, else CLASSES of them at most."""
    return list(labels) if asked else [labels[i] for i in spread(len(labels), CLASSES)]


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, evenly spaced, first and last included."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def which(shown: Sequence[int], names: Sequence[str]) -> str:
    """How a title says which classes are shown, where it is not all of them."""
    if len(shown) == len(names):
        return ""
    return f": {names[shown[0]]}" if len(shown) == 1 else f", {len(shown)} of {len(names)} classes"


def bank(inside: dict[str, Tensor], label: int, neighbours: str) -> Tensor:
    """The embeddings that count as neighbours of a class."""
    return inside["embeddings"] if neighbours == "all" else inside["embeddings"][inside["labels"] == label]


def id_distances(config: Config, inside: dict[str, Tensor], labels: Sequence[int]) -> Tensor:
    """d_k of the ID embeddings of classes `labels`, over the 99th percentile of their class."""
    s, parts = settings(config, "dream.outliers"), []
    for label in tqdm(labels, desc="plot: ID distances", unit="class", leave=False):
        z = inside["embeddings"][inside["labels"] == label]
        distance = outliers_stage.knn_distance(z, bank(inside, label, s.neighbours), s.k).double()
        parts.append(distance / unit(distance.quantile(0.99).item()))
    return torch.cat(parts)


def unit(p99: float) -> float:
    """What distances are divided by: the 99th percentile of ID; 1 where that is 0, since with k 1 each finds itself."""
    return p99 or 1.0


def picture(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    return np.array(data.read_image(path))
