"""What is said of imagined images is true, and only what the filter names is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import Tiny
from PIL import Image

from openood_dream.datasets.images import ImageList, Transform
from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.chain import Dream
from openood_dream.dream.findings import quality_table
from openood_dream.dream.quality import difference_hash, dropped, duplicates, space_judge
from openood_dream.dream.quality_settings import FilterSettings
from openood_dream.dream.space import load_encoder
from openood_dream.errors import InputError
from openood_dream.networks.factory import get_network
from openood_dream.store.artifacts import Artifact
from openood_dream.store.files import sha256
from openood_dream.store.tensors import write_checkpoint


@pytest.fixture(scope="module")
def judged(dream: Dream) -> Artifact:
    return dream.quality


@pytest.fixture(scope="module")
def table(judged: Artifact) -> pd.DataFrame:
    return pd.read_parquet(judged.path / "quality.parquet")


def test_verdicts(dream: Dream, table):
    anchors = F.normalize(load_anchors(dream.anchors), dim=1)
    encoder = load_encoder(dream.space, dream.settings.space, 16, 16)
    bank = dream.data.images("dataset", "train")
    with torch.inference_mode():
        known = F.normalize(encoder(torch.stack([bank[i]["data"] for i in range(len(bank))])), dim=1)
        for row in table.sample(4, random_state=0).to_dict("records"):
            pixels = np.asarray(Image.open(dream.images.path / row["file"]).convert("RGB"))
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            h = F.normalize(encoder(x), dim=1)
            p = (h @ anchors.T / 0.1).softmax(1)[0]
            assert row["predicted"] == p.argmax()
            assert row["confidence"] == pytest.approx(p[row["class"]].item(), abs=1e-4)
            distance = (known - h).norm(dim=1).sort().values[4].item()
            assert row["distance"] == pytest.approx(distance, abs=1e-4)


def test_manifest(judged, table, dream: Dream):
    for label, about in enumerate(judged.manifest["classes"]):
        of_class = table[table["class"] == label]
        own = of_class["predicted"] == label
        assert about["name"] == dream.names[label] and about["images"] == len(of_class) == 4
        assert about["own_class"] == own.sum() and about["confident"] == (own & (of_class["confidence"] > 0.95)).sum()
        assert about["distance"]["p50"] == pytest.approx(of_class["distance"].median())
        assert about["dropped"] == 0
    test = read_imglist(dream.data.split("dataset", "test").imglist_pth)
    assert judged.manifest["id"]["images"] == len(test) and judged.manifest["kept"] == len(table)


def test_quality_table(judged, dream: Dream):
    frame = quality_table(judged)
    assert frame["class"].tolist() == [*dream.names, "ID test"]
    assert frame["images"].tolist()[:6] == frame["kept"].tolist()[:6] == [4] * 6
    assert frame["kept"].isna().tolist()[-1]


# ------------------------------------------------------------------------------------------------------------ the judge


def test_judged_by_a_network(dream: Dream, tiny: Tiny, tmp_path, judged):
    net = get_network(tiny.config().network, image_size=16)
    write_checkpoint(tmp_path / "best.ckpt", net.state_dict())
    other = tiny.config("--dream.quality.checkpoint", str(tmp_path / "best.ckpt")).imagination.quality
    judge = other.manifest["inputs"]["judge"]
    assert other.hash != judged.hash and judge["checkpoint"] == sha256(tmp_path / "best.ckpt")
    frame, image = (
        pd.read_parquet(other.path / "quality.parquet"),
        dream.data.open(dream.images.path / "imglist.txt", dream.images.path, "dream"),
    )
    with torch.inference_mode():
        logits = net.eval()(torch.stack([image[i]["data"] for i in range(3)]))
    assert frame["predicted"].tolist()[:3] == logits.argmax(1).tolist()


def test_no_checkpoint(tiny: Tiny, tmp_path):
    config = tiny.config("--dream.quality.checkpoint", "nowhere", "--dream.cache_dir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"command line: dream\.quality\.checkpoint: .*'nowhere'"):
        _ = config.imagination.quality
    assert not (tmp_path / "none").exists()


def test_k_beyond_training_images(dream: Dream, tiny: Tiny):
    with pytest.raises(InputError, match=r"command line: dream\.quality\.k: .*9999"):
        _ = tiny.config("--dream.quality.k", "9999").imagination.quality


# ---------------------------------------------------------------------------------------------------------- duplicates


def test_difference_hash():
    rng = np.random.default_rng(0)
    images = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), 2)) for _ in range(20)
    ]
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    hashes = difference_hash(stack)
    assert len(set(hashes)) == 20
    darker = (stack.float() * 0.7).round().to(torch.uint8)
    small = F.interpolate(stack.float(), (32, 32), mode="bilinear", antialias=True).round().to(torch.uint8)
    for other in (darker, small):
        bits = np.unpackbits((difference_hash(other) ^ hashes).view(np.uint8)).sum()
        assert bits <= 20 * 3  # of 64 bits each


def test_duplicates(tmp_path: Path):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    order = [0, 1, 0, 2, 1, 0]
    for number, which in enumerate(order):
        Image.fromarray(pictures[which]).save(tmp_path / f"{number}.png")
    write_imglist(tmp_path / "list.txt", [(f"{number}.png", -1) for number in range(len(order))])
    images = ImageList(tmp_path / "list.txt", tmp_path, Transform(16, 16))
    assert duplicates(images).tolist() == ["", "", "0.png", "", "1.png", "0.png"]


# -------------------------------------------------------------------------------------------------------------- filter

FOUND = pd.DataFrame(
    {
        "file": ["a.png", "b.png", "c.png", "d.png", "e.png"],
        "confidence": [0.99, 0.2, 0.99, 0.5, 0.1],
        "distance": [0.1, 0.9, 0.9, 0.1, 0.5],
        "duplicate": ["", "", "a.png", "", "b.png"],
    }
)


@pytest.mark.parametrize(
    "rule, inliers, expected",
    [
        ({}, False, ["", "", "", "", ""]),
        ({"confidence": 0.95}, False, ["confidence", "", "confidence", "", ""]),
        ({"confidence": 0.95}, True, ["", "confidence", "", "confidence", "confidence"]),
        ({"distance": 0.5}, False, ["distance", "", "", "distance", ""]),
        ({"distance": 0.5}, True, ["", "distance", "distance", "", "distance"]),
        ({"duplicates": True}, False, ["", "", "duplicate", "", "duplicate"]),
        ({"duplicates": True, "confidence": 0.95}, False, ["confidence", "", "confidence", "", "duplicate"]),
        ({"duplicates": True, "distance": 0.5}, False, ["distance", "", "", "distance", "duplicate"]),
    ],
)
def test_filter(rule, inliers, expected):
    val = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # half of them are nearer than 0.3
    assert dropped(FOUND, FilterSettings(**rule), val, inliers).tolist() == expected


def test_training_images_that_the_filter_leaves(dream: Dream, tiny: Tiny, table):
    judge = space_judge(dream.anchors, dream.space, dream.settings.space, 16).load().eval()
    with torch.inference_mode():
        bank, val = (
            judge(torch.stack([images[i]["data"] for i in range(len(images))]))[1]
            for images in (dream.data.images("dataset", split) for split in ("train", "val"))
        )
    nearest = torch.cdist(val, bank).sort(dim=1).values[:, 4]
    share = (nearest < table["distance"].median()).float().mean().item()  # some images lie on either side of it
    limit = nearest.quantile(share).item()
    filtered = tiny.config("--dream.filter.distance", str(share)).imagination
    chosen = filtered.training_images()
    kept = table["file"][table["distance"] > limit]
    assert [name for name, _ in read_imglist(chosen.imglist)] == kept.tolist() and 0 < len(kept) < len(table)
    assert (chosen.data_dir, chosen.identity) == (dream.images.path, filtered.quality.hash)
    record = pd.read_parquet(filtered.quality.path / "quality.parquet")
    assert (record["dropped"] == "distance").sum() == len(table) - len(kept)


def test_filter_that_drops_everything(dream: Dream, tiny: Tiny):
    with pytest.raises(InputError, match=r"command line: dream\.filter: .*24 images \(confidence 24\)"):
        _ = tiny.config("--dream.filter.confidence", "1e-9").imagination.quality


def test_training_images_without_a_filter(dream: Dream):
    chosen = dream.training_images()
    assert chosen[:4] == (dream.images.path / "imglist.txt", dream.images.path, dream.images.hash, "imagined (knn)")
    assert chosen.warnings == dream.plain_samples.warnings
