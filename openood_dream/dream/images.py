"""Phase 2b: the image set of outlier embeddings, drawn shard by shard here or by Ray workers.

Besides it, the latents that the same images would be decoded from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from openood_dream._version import __version__
from openood_dream.dream.guided import Guidance
from openood_dream.dream.image_set import PARTNER, join_shards, missing_shards, shards, write_image, write_shard
from openood_dream.dream.imaginer import Imaginer, check_anchors, image_seed, load_pipeline, png
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.pairs import check_pair
from openood_dream.dream.placing import drawing_device
from openood_dream.dream.residuals import load_residuals, lost, residuals_of
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.starts import Starts
from openood_dream.errors import InputError
from openood_dream.extras import check_installed
from openood_dream.parallel import ray
from openood_dream.store.artifacts import MANIFEST, Artifact, build, complete
from openood_dream.store.tables import INTEGERS, read_table, write_table
from openood_dream.store.tensors import Rows, read_rows, write_index, write_tensors

LATENTS = dict.fromkeys(("class", "embedding", "seed"), INTEGERS)  # columns of latents.parquet
INLIER = "_id"  # ends the file name of a pair's image under its own embedding
WRITERS = 4  # threads that encode and write images while the next ones are drawn


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder name for each class, without spaces, at which OpenOOD splits lists, and of nothing else in the set's folder."""
    folders = [re.sub(r"[^\w.-]+", "_", name).strip("._").encode()[:100].decode(errors="ignore") for name in names]
    folders = [folder or "class" for folder in folders]
    taken = [*folders, "shards", "images.parquet", "imglist.txt", MANIFEST]
    return [f"{folder}_{i}" if taken.count(folder) > 1 else folder for i, folder in enumerate(folders)]


def choose(outliers: pd.DataFrame, per_class: int, classes: int, seed: int) -> np.ndarray:
    """Chooses the embeddings that are drawn: classes take turns, each class's embeddings in random order.

    Where a class has fewer embeddings than images they are used again, with other noise.

    Args:
        outliers: the table of the embeddings, with a column `class`.
        per_class: images of each class.
        classes: how many classes there are.
        seed: seed of the order.

    Returns:
        The row of the table for image 0, 1, ... (classes * per_class,).

    Raises:
        InputError: a class has no embedding.
    """
    labels, columns = outliers["class"].to_numpy(), []
    order = labels.argsort(kind="stable")  # once, so that no class looks at all rows
    starts, ends = (labels[order].searchsorted(np.arange(classes), side) for side in ("left", "right"))
    for label in range(classes):
        rows = order[starts[label] : ends[label]]
        if not len(rows):
            raise InputError(
                f"dream.outliers: class {label} has no outlier embedding; change dream.outliers so that it gets some"
            )
        columns.append(np.resize(np.random.default_rng([seed, label]).permutation(rows), per_class))
    return np.stack(columns, axis=1).reshape(-1)


def set_inputs(
    source: Source,
    outliers: Artifact,
    names: Sequence[str],
    settings: SynthesisSettings,
    *without_effect: str,
    starts: Starts | None = None,
    guidance: Guidance | None = None,
) -> dict[str, Any]:
    """What decides about what is drawn of outliers.

    Args:
        source: where the pipeline comes from.
        outliers: the artifact of their embeddings.
        names: the class names.
        settings: how they are drawn.
        without_effect: the settings that have no say in it.
        starts: the ID images that drawing starts from, or that pairs have, if any.
        guidance: what guides the drawing, if anything does.

    Returns:
        The inputs of an artifact.
    """
    unused = (*without_effect, *(() if settings.init == "id" else ("strength",)), *(() if starts else ("pair",)))
    given = {"starts": starts, "guide": guidance}
    return {key: one.identity for key, one in given.items() if one} | {
        "generator": source.identity,
        "outliers": outliers.hash,
        "class_names": list(names),
        "synthesis": settings.deciding(*unused),
    }


# ---------------------------------------------------------------------------------------------------- the image set


def imagined_label(method: str) -> str:
    """What tables call images that a way of sampling (`dream.outliers.method`) led to."""
    return f"imagined ({method})"


def list_label(imglist: Path) -> str:
    """What tables call the images of a list: what its image set says of itself where we drew it, else the list's name.

    Args:
        imglist: the list; that of an image set, or of what a filter left of one, lies beside a manifest.
    """
    manifest = complete(imglist.parent, {"description": (str, NoneType)})
    return (manifest or {}).get("description") or imglist.stem


def check_executor(executor: str) -> None:
    """Checks that what distributes the drawing is installed: InputError where `executor` is ray and Ray is not."""
    if executor == "ray":
        check_installed("executor", "ray")


def make_images(
    source: Source,
    outliers: Artifact,
    names: Sequence[str],
    settings: SynthesisSettings,
    cache_dir: str | Path,
    *,
    keeps_class: bool,
    device: str = "auto",
    executor: str = "local",
    worker_gpus: float = 1,
    residuals: Callable[[Imaginer], Artifact] | None = None,
    starts: Starts | None = None,
    guidance: Guidance | None = None,
) -> Artifact:
    """The images stage: `<class>/<id>.png`, `imglist.txt` and `images.parquet` with a row per image.

    Args:
        source: where the pipeline comes from.
        outliers: the artifact of the embeddings.
        names: the class names in label order.
        settings: how images are drawn.
        cache_dir: folder of all artifacts.
        keeps_class: whether the images still belong to their class (inliers); else their label is -1.
        device: the config's word for the device.
        executor: local, or ray for workers of a Ray cluster.
        worker_gpus: GPUs of such a worker.
        residuals: makes the artifact of residuals that the images get, given what draws them; picklable for Ray. None:
            they get none.
        starts: the ID images that drawing starts from, or that pairs have; None: there are none.
        guidance: what guides the drawing; None: nothing does.

    Returns:
        The artifact.

    Raises:
        InputError: the embeddings do not fit the pipeline, a class has none, or an image does not fit into memory.
    """
    check_executor(executor)
    check_pair(settings, keeps_class)
    each = partial(ray.each, device=device, worker_gpus=worker_gpus) if executor == "ray" else None

    def make(folder: Path) -> dict[str, Any]:
        wanted = shards(settings.per_class * len(names), settings.shard_size)
        todo = missing_shards(folder, wanted)
        drawing = partial(Shards, source, outliers, names, settings, folder, keeps_class=keeps_class, device=device)
        work = partial(drawing, residuals=residuals, starts=starts, guidance=guidance)
        if todo:
            total = sum(len(wanted[number]) for number in todo)
            with tqdm(total=total, desc="imagine: drawing images", unit="image") as bar:
                _draw(work, wanted, todo, bar, each)
        table, method = join_shards(folder, len(wanted)), outliers.manifest["inputs"]["outliers"]["method"]
        return {"images": len(table), "generator": source.path, "description": imagined_label(method)}

    inputs = set_inputs(source, outliers, names, settings, starts=starts, guidance=guidance)
    return build(cache_dir, "images", inputs, make, label=outliers.label, settled=True)


def _draw(
    work: Callable[[], Shards],
    wanted: Sequence[range],
    todo: Sequence[int],
    bar: tqdm,
    each: Callable[..., Iterator[int]] | None,
) -> None:
    """Draws the shards `todo` of those `wanted`, here or by workers that `each` has do them, and moves the bar."""
    if each is not None:
        for number in each(partial(drawer, work), todo):
            bar.update(len(wanted[number]))
    else:
        draw = drawer(work, bar)
        for number in todo:
            draw(number)


def drawer(work: Callable[[], Shards], bar: tqdm | None = None) -> Callable[[int], None]:
    """Loads a pipeline to draw shards with.

    Args:
        work: makes what draws them.
        bar: moves with every batch.

    Returns:
        A function that draws the shard of a number.
    """
    made = work()

    def draw(number: int) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            made.draw(number, made.wanted[number], pool, bar)

    return draw


class Shards:
    """Draws the shards of an image set. A shard's content depends on the arguments and its number alone.

    Args:
        source: where the pipeline comes from; it is loaded at once.
        outliers: the artifact of the embeddings.
        names: the class names in label order.
        settings: how images are drawn.
        folder: the set's folder.
        keeps_class: whether images are labelled with their class, else with -1.
        device: the config's word for the device.
        residuals: makes the artifact of residuals that the images get, or None.
        starts: the ID images that drawing starts from, or None.
        guidance: what guides the drawing, or None.

    Raises:
        InputError: the embeddings do not fit the pipeline, or a class has none.
    """

    def __init__(
        self,
        source: Source,
        outliers: Artifact,
        names: Sequence[str],
        settings: SynthesisSettings,
        folder: Path,
        *,
        keeps_class: bool = False,
        device: str = "auto",
        residuals: Callable[[Imaginer], Artifact] | None = None,
        starts: Starts | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        self.starts = starts
        self.source, self.names, self.settings, self.folder = source, names, settings, folder
        self.keeps_class, self._make_residuals = keeps_class, residuals
        self.folders = folder_names(names)
        self.table, self.embeddings = load_outliers(outliers)
        self.distances = self.table["distance"].to_numpy()
        self.rows = choose(self.table, settings.per_class, len(names), settings.seed)
        self.wanted = shards(len(self.rows), settings.shard_size)
        self.imaginer = Imaginer(load_pipeline(source, settings, device), names, settings)
        check_anchors(self.imaginer, self.embeddings)
        self.guide = None if guidance is None else guidance.load(drawing_device(self.imaginer.pipeline))

    @cached_property
    def residuals(self) -> torch.Tensor:
        """What images get back that start from noise; not made for latents, which get nothing."""
        if self._make_residuals is None:
            raise ValueError("no residuals are wanted")
        return load_residuals(self._make_residuals(self.imaginer))

    def draw(self, number: int, images: range, pool: ThreadPoolExecutor, bar: tqdm | None = None) -> None:
        """Draws and writes one shard; its table comes last, when all its images are on disk.

        Args:
            number: the shard's number.
            images: the numbers of its images.
            pool: threads that write images.
            bar: moves with every batch.
        """
        written = []
        for batch in self.batches(images):
            labels, tokens, seeds = self.inputs(batch)
            picked = None if self.starts is None else self.starts.pick(labels, seeds)
            begin = self.start(picked)
            back = self.back(begin, seeds)
            drawn = {"": self.imaginer(labels, tokens, seeds, back, begin, self.guide)}
            names: Sequence[str | None] = [None] * len(batch)
            if self.starts is not None and picked is not None:
                names = self.starts.names(picked)
                if self.settings.pair == "autoencoder":
                    drawn[INLIER] = self.imaginer.rebuilt(self.starts.pixels(picked, self.imaginer.size), back)
                elif self.settings.pair:
                    drawn[INLIER] = self.imaginer(labels, self.starts.tokens(picked), seeds, back, begin)
            for kind, pixels in drawn.items():
                for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
                    about = (batch[i], int(self.rows[batch[i]]), int(labels[i]), seeds[i], names[i])
                    written.append(pool.submit(self.write, *about, image, kind))
            if bar is not None:
                bar.update(len(batch))
        write_shard(self.folder, number, [row.result() for row in written])

    def start(self, picked: np.ndarray | None) -> torch.Tensor | None:
        """The images (B, 3, S, S) in [-1, 1] that drawing starts from, or None where it starts from noise."""
        if picked is None or self.starts is None or self.settings.init == "noise":
            return None
        return self.starts.pixels(picked, self.imaginer.size)

    def back(self, begin: torch.Tensor | None, seeds: Sequence[int]) -> torch.Tensor | None:
        """What images get back of what the autoencoder loses: of the very image that they start from, or of a random one.

        Args:
            begin: the images (B, 3, S, S) that they start from, or None.
            seeds: their noise seeds.
        """
        if self._make_residuals is None:
            return None
        if begin is not None:
            return lost(self.imaginer.pipeline, begin)
        return residuals_of(self.residuals, seeds)

    def inputs(self, images: range) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Class labels (B,), class tokens (B, m) and noise seeds of some images of the set, by their numbers."""
        rows = self.rows[images]
        labels = torch.from_numpy(self.table["class"].to_numpy()[rows].astype(np.int64))
        return labels, self.embeddings[torch.from_numpy(rows)], [image_seed(self.settings.seed, i) for i in images]

    def batches(self, images: range) -> Iterator[range]:
        """The numbers of the images of a shard, batch by batch."""
        for start in range(images.start, images.stop, self.settings.batch_size):
            yield range(start, min(start + self.settings.batch_size, images.stop))

    def write(
        self, number: int, row: int, label: int, seed: int, start: str | None, image: np.ndarray, kind: str
    ) -> dict[str, Any]:
        """Writes one image.

        Args:
            number: its number in the set.
            row: the row of its embedding.
            label: its class.
            seed: its noise seed.
            start: the file of the ID image that it, or its pair's inlier, started from, or None.
            image: uint8 (S, S, 3).
            kind: INLIER for a pair's image under its own embedding, else "".

        Returns:
            Its row of the table.
        """
        file, other = (Path(self.folders[label]) / f"{number:07d}{what}.png" for what in (kind, "" if kind else INLIER))
        content = png(image)
        write_image(self.folder / file, content)
        return {
            "file": file.as_posix(),
            "label": label if self.keeps_class or kind else -1,
            "sha256": sha256(content).hexdigest(),
            "class": label,
            "embedding": row,
            "seed": seed,
            "prompt": self.imaginer.placeholder.texts[label],
            "distance": float(self.distances[row]),
            "generator": self.source.path,
            "code": __version__,
        } | ({} if start is None else {"start": start, PARTNER: other.as_posix() if self.settings.pair else ""})


# ------------------------------------------------------------------------------------------------------------ latents


def make_latents(
    source: Source,
    outliers: Artifact,
    names: Sequence[str],
    settings: SynthesisSettings,
    cache_dir: str | Path,
    *,
    device: str = "auto",
    starts: Starts | None = None,
    guidance: Guidance | None = None,
) -> Artifact:
    """The UNet's latents that the images of `make_images` would be decoded from, shard by shard.

    For OAL (Gao & Li), which learns from the latents of outlier prompts and needs no image of them.

    Args:
        source: where the pipeline comes from.
        outliers: the artifact of the embeddings.
        names: the class names in label order.
        settings: how they are drawn.
        cache_dir: folder of all artifacts.
        device: the config's word for the device.
        starts: the ID images that drawing starts from; None: it starts from noise.
        guidance: what guides the drawing; None: nothing does.

    Returns:
        The artifact, for `load_latents`.

    Raises:
        InputError: as `make_images` raises it.
    """

    def make(folder: Path) -> dict[str, Any]:
        work = Shards(source, outliers, names, settings, folder, device=device, starts=starts, guidance=guidance)
        files = [folder / "shards" / f"{number:06d}.safetensors" for number in range(len(work.wanted))]
        done = sum(len(images) for images, file in zip(work.wanted, files, strict=True) if file.exists())
        with tqdm(total=len(work.rows), initial=done, desc="imagine: drawing latents", unit="latent") as bar:
            for number, (images, file) in enumerate(zip(work.wanted, files, strict=True)):
                if file.exists():
                    continue
                parts = []
                for batch in work.batches(images):
                    labels, tokens, seeds = work.inputs(batch)
                    begin = work.start(None if starts is None else starts.pick(labels, seeds))
                    parts.append(work.imaginer.latents(labels, tokens, seeds, begin, work.guide))
                    bar.update(len(batch))
                write_tensors(file, **{f"latents.{number}": torch.cat(parts)})
        write_index(folder, "latents", files)
        columns = {
            "class": work.table["class"].to_numpy()[work.rows],
            "embedding": work.rows,
            "seed": [image_seed(settings.seed, number) for number in range(len(work.rows))],
        }
        write_table(folder / "latents.parquet", pd.DataFrame(columns))
        return {"latents": len(work.rows), "generator": source.path}

    inputs = set_inputs(
        source, outliers, names, settings, "save_size", "residual", "pair", starts=starts, guidance=guidance
    )
    return build(cache_dir, "latents", inputs, make, label=outliers.label)


def load_latents(artifact: Artifact) -> tuple[pd.DataFrame, Rows]:
    """The table (class, embedding and seed of each) and the latents (M, c, h, w) of an artifact."""
    return read_table(artifact.path / "latents.parquet", LATENTS), read_rows(artifact.path, "latents")
