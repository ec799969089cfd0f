"""Judges imagined images before anything is trained with them: too close to ID, far enough, all different?

An outlier that the ID classifier takes for its own class with confidence teaches a network that ID images are outliers.
The judge is the space's encoder with its cosine classifier (DREAM-OOD, Eq. 2), or a checkpoint of `network`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream import anchors as anchors_stage
from openood_dream import data, imagine, store
from openood_dream import space as space_stage
from openood_dream.config import Config, FilterSettings, InputError, QualitySettings, origin, settings
from openood_dream.networks import get_network, load_weights, pick_device
from openood_dream.outliers import QUANTILES, knn_distance

Judge = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def judge_identity(config: Config) -> dict[str, Any]:
    """What names the judge in hashes; InputError where its checkpoint is not there. Loads nothing."""
    checkpoint = settings(config, "dream.quality").checkpoint
    if checkpoint is None:
        return {"space": space_stage.run(config).hash}
    if not Path(checkpoint).is_file():
        where = origin(config, "dream.quality.checkpoint")
        raise InputError(f"{where}: dream.quality.checkpoint: no file {checkpoint!r}; expected a checkpoint of network")
    return {
        "checkpoint": store.sha256(Path(checkpoint)),
        "network": {key: config.network.get(key) for key in ("name", "args")},
    }


def judge(config: Config) -> Judge:
    """What takes images (B, 3, S, S) to logits (B, C) and unit features (B, D)."""
    dream, device = settings(config, "dream"), pick_device(config.device)
    if dream.quality.checkpoint is None:
        anchors = anchors_stage.load(anchors_stage.run(config)).to(device)
        encoder = space_stage.load_encoder(config, space_stage.run(config), anchors.shape[1]).to(device)

        def by_space(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = F.normalize(encoder(x).float(), dim=1)
            return space_stage.cosine_logits(h, anchors, dream.space.temperature), h

        return by_space
    net = get_network(config)
    load_weights(net, Path(dream.quality.checkpoint))
    net.to(device).eval()

    def by_network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = net(x, return_feature=True)
        return logits.float(), F.normalize(features.float(), dim=1)

    return by_network


@torch.inference_mode()
def judged(decide: Judge, loader: DataLoader, device: torch.device, desc: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (N, C) and unit features (N, D) of a loader's images, on the CPU."""
    batches = tqdm(loader, desc=desc, unit="batch", leave=False, delay=2)
    parts = [[part.cpu() for part in decide(batch["data"].to(device))] for batch in batches]
    return torch.cat([part[0] for part in parts]).softmax(1), torch.cat([part[1] for part in parts])


def difference_hash(images: torch.Tensor) -> np.ndarray:
    """A perceptual hash (N,) of uint8 images (N, 3, S, S): whether each of 8x8 grey means exceeds its left neighbour.

    Images that differ in size, noise or brightness alone mostly have the same hash.
    """
    grey = images.float().mean(1, keepdim=True)
    grey = F.interpolate(grey, (8, 9), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def run(config: Config) -> store.Artifact:
    """The quality stage: `quality.parquet` with a row per image, and `imglist.txt` with those that `dream.filter` keeps.

    Columns: file, class, predicted, confidence (in its own class), distance (of its feature to the k-th nearest ID
    training feature), duplicate (of an earlier image of the set, by difference_hash) and dropped (why, or ""). The
    manifest has a list of `classes` with counts and quantiles, and the same of ID test images (`id`), where the config
    has a test set. Raises InputError where the filter drops everything.
    """
    dream, names = settings(config, "dream"), data.class_names(config)
    quality: QualitySettings = dream.quality
    images = imagine.run(config)
    sets = ["train", "val", *(["test"] if isinstance(config.dataset.get("test"), dict) else [])]
    inputs = {
        "images": images.hash,
        "judge": judge_identity(config),
        "settings": quality.model_dump(exclude={"checkpoint"}),
        "filter": dream.filter.model_dump(),
        "transform": space_stage.transform_identity(config),
        "data": [
            store.list_digest(config.dataset[s].imglist_pth, config.dataset[s].data_dir, f"dataset.{s}.imglist_pth")
            for s in sets
        ],
    }

    def make(folder: Path) -> dict[str, Any]:
        device, decide = pick_device(config.device), judge(config)
        workers = config.dataset.num_workers or 0
        train = data.loader(data.id_loader(config, "train").dataset, 256, shuffle=False, workers=workers)
        bank = judged(decide, train, device, "quality: ID training images")[1]
        if quality.k > len(bank):
            where = origin(config, "dream.quality.k")
            raise InputError(
                f"{where}: dream.quality.k: expected at most {len(bank)} (training images), got {quality.k}"
            )
        table = store.read_images(images.path)
        section = Config(imglist_pth=str(images.path / "imglist.txt"), data_dir=str(images.path))
        drawn = data.image_list(config, "imagined", section, name="dream")
        loader = data.loader(drawn, 256, shuffle=False, workers=workers)
        found = pd.DataFrame({"file": table["file"], "class": table["class"]})
        add_verdicts(found, *judged(decide, loader, device, "quality: imagined images"), bank, quality.k)
        found["duplicate"] = duplicates(drawn)
        val = judged(decide, data.id_loader(config, "val"), device, "quality: ID validation images")[1]
        nearest = knn_distance(val, bank, quality.k).numpy()
        found["dropped"] = dropped(found, dream.filter, nearest, inliers=dream.outliers.method == "inlier")
        kept = found["dropped"] == ""
        if not kept.any():
            where = origin(config, "dream.filter")
            reasons = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].value_counts().items())
            raise InputError(f"{where}: dream.filter: drops all {len(found)} images ({reasons}); loosen it")
        store.write_table(folder / "quality.parquet", found)
        store.write_imglist(folder / "imglist.txt", zip(table["file"][kept], table["label"][kept], strict=True))
        about = {
            "classes": [
                summary(found[found["class"] == label], quality) | {"name": name} for label, name in enumerate(names)
            ]
        }
        if "test" in sets:
            test = data.id_loader(config, "test")
            inside = pd.DataFrame({"class": test.dataset.labels.numpy()})
            add_verdicts(inside, *judged(decide, test, device, "quality: ID test images"), bank, quality.k)
            about["id"] = summary(inside, quality)
        return about | {"kept": int(kept.sum())}

    return store.build(dream.cache_dir, "quality", inputs, make)


def add_verdicts(
    frame: pd.DataFrame, probabilities: torch.Tensor, features: torch.Tensor, bank: torch.Tensor, k: int
) -> None:
    """Adds predicted, confidence (in the row's own class) and distance to a frame with a column class."""
    own = torch.tensor(frame["class"].to_numpy())
    frame["predicted"] = probabilities.argmax(1).numpy()
    frame["confidence"] = probabilities.gather(1, own[:, None])[:, 0].numpy()
    frame["distance"] = knn_distance(features, bank, k).numpy()


def duplicates(images: data.ImageList) -> np.ndarray:
    """The file of the first image with the same difference_hash as each image (N,), or "" where it is the first."""
    hashes = np.concatenate([difference_hash(pixels) for pixels in images.raw(256)])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    files = np.array([name for name, _ in images.rows], dtype=object)
    return np.where(first[group] == np.arange(len(files)), "", files[first[group]])


def dropped(found: pd.DataFrame, rule: FilterSettings, val: np.ndarray, inliers: bool) -> pd.Series:
    """Why each image is dropped, or "": confidence, else distance, else duplicate of one that is kept.

    `confidence` drops outliers whose own class is surer than that, and inliers whose own class is less sure; `distance`
    drops outliers nearer to ID than that share of the validation images, of distances `val` (V,), and inliers farther.
    """
    why = pd.Series("", index=found.index)
    if rule.distance is not None:
        far = found["distance"] > np.quantile(val, rule.distance)
        why[far if inliers else ~far] = "distance"
    if rule.confidence is not None:
        sure = found["confidence"] > rule.confidence
        why[~sure if inliers else sure] = "confidence"
    if rule.duplicates:
        left = found[why == ""]
        again = left["duplicate"].where(left["duplicate"] != "", left["file"]).duplicated()
        why[again[again].index] = "duplicate"
    return why


def summary(found: pd.DataFrame, quality: QualitySettings) -> dict[str, Any]:
    """Counts and quantiles of one class."""
    mine = found["predicted"] == found["class"]
    about = {
        "images": len(found),
        "own_class": int(mine.sum()),
        "confident": int((mine & (found["confidence"] > quality.confidence)).sum()),
        "distance": {name: float(found["distance"].quantile(q)) for name, q in QUANTILES.items()} if len(found) else {},
    }
    if "dropped" in found:
        about |= {"duplicates": int((found["duplicate"] != "").sum()), "dropped": int((found["dropped"] != "").sum())}
    return about


def chosen(config: Config) -> tuple[Path, Path, str]:
    """The imagined images to train with: imglist, data_dir, and the hash of what decides about them.

    All of the image set, or what `dream.filter` leaves of it.
    """
    images = imagine.run(config)
    if settings(config, "dream").filter.active:
        kept = run(config)
        return kept.path / "imglist.txt", images.path, kept.hash
    return images.path / "imglist.txt", images.path, images.hash


def table(artifact: store.Artifact) -> pd.DataFrame:
    """The manifest's findings as a table, a row per class, then all, then ID test images; shares in percent."""
    made = [(about["name"], about) for about in artifact.manifest["classes"]]
    made += [("ID test", artifact.manifest["id"])] if "id" in artifact.manifest else []
    rows = []
    for name, about in made:
        count = max(about["images"], 1)
        rows.append(
            {
                "class": name,
                "images": about["images"],
                "own class": 100 * about["own_class"] / count,
                "confident": 100 * about["confident"] / count,
                "distance": about["distance"].get("p50", np.nan),
                "5 %": about["distance"].get("p5", np.nan),
                "99 %": about["distance"].get("p99", np.nan),
                "duplicates": about.get("duplicates"),
                "dropped": about.get("dropped"),
            }
        )
    return pd.DataFrame(rows).astype({"duplicates": "Int64", "dropped": "Int64"})


def render(artifact: store.Artifact) -> str:
    """The table as text for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    about = artifact.manifest["inputs"]
    sure, k = about["settings"]["confidence"], about["settings"]["k"]
    judge = (
        f"the checkpoint's {about['judge']['network']['name']}"
        if "checkpoint" in about["judge"]
        else "the space's classifier"
    )
    headers = {
        "own class": "own\nclass %",
        "confident": f"surer than\n{sure:g}, %",
        "distance": f"{k}-NN\ndistance",
        "5 %": "its\n5 %",
        "99 %": "its\n99 %",
        "duplicates": "dupli-\ncates",
    }
    view, frame = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True), table(artifact)
    for name in frame:
        view.add_column(headers.get(name, name), justify="left" if name == "class" else "right")
    for row in frame.itertuples(index=False):
        cells = ["" if pd.isna(x) else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row]
        view.add_row(*map(Text, cells))
    console = Console()
    with console.capture() as capture:
        console.print(view)
        console.print(Text(f"judged by {judge}; distances of features to the nearest ID training images", style="dim"))
    return capture.get()
