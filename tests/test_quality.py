"""What is said of imagined images is true, and only what the filter names is dropped."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from openood_dream import imagine, outliers, pipelines, quality, space, store
from openood_dream.config import FilterSettings, InputError


@pytest.fixture(scope="module")
def judged(chain, tiny) -> store.Artifact:
    return quality.run(tiny.config())


@pytest.fixture(scope="module")
def table(judged) -> pd.DataFrame:
    return pd.read_parquet(judged.path / "quality.parquet")


def test_each_image_has_the_verdict_that_the_encoder_alone_gives(chain, table, tiny):
    config = tiny.config()
    anchors = imagine.anchors_stage.load(chain.anchors)
    encoder = space.load_encoder(config, chain.space, anchors.shape[1])
    bank = quality.data.id_loader(config, "train").dataset
    with torch.inference_mode():
        known = torch.nn.functional.normalize(encoder(torch.stack([bank[i]["data"] for i in range(len(bank))])), dim=1)
        for row in table.sample(4, random_state=0).to_dict("records"):
            pixels = np.asarray(Image.open(chain.images.path / row["file"]).convert("RGB"))
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            h = torch.nn.functional.normalize(encoder(x), dim=1)
            cosines = h @ torch.nn.functional.normalize(anchors, dim=1).T
            p = (cosines / 0.1).softmax(1)[0]
            assert row["predicted"] == p.argmax()
            assert row["confidence"] == pytest.approx(p[row["class"]].item(), abs=1e-4)
            distance = (known - h).norm(dim=1).sort().values[4].item()
            assert row["distance"] == pytest.approx(distance, abs=1e-4)


def test_the_manifest_counts_what_the_table_says(judged, table, chain):
    for label, about in enumerate(judged.manifest["classes"]):
        mine = table[table["class"] == label]
        own = mine["predicted"] == label
        assert about["name"] == chain.config.dream.class_names[label] and about["images"] == len(mine) == 4
        assert about["own_class"] == own.sum() and about["confident"] == (own & (mine["confidence"] > 0.95)).sum()
        assert about["distance"]["p50"] == pytest.approx(mine["distance"].median())
        assert about["dropped"] == 0
    test = store.read_imglist(chain.config.dataset.test.imglist_pth)
    assert judged.manifest["id"]["images"] == len(test) and judged.manifest["kept"] == len(table)


def test_the_judge_can_be_a_trained_network(chain, tiny, tmp_path, judged):
    config = tiny.method("base", "--output_dir", str(tmp_path / "run"))
    checkpoint = pipelines.train(config) / "best.ckpt"
    other = quality.run(tiny.config("--dream.quality.checkpoint", str(checkpoint)))
    assert other.hash != judged.hash and other.manifest["inputs"]["judge"]["checkpoint"] == store.sha256(checkpoint)
    with pytest.raises(InputError, match=r"command line: dream\.quality\.checkpoint: no file 'nowhere'"):
        quality.run(tiny.config("--dream.quality.checkpoint", "nowhere"))


# ---------------------------------------------------------------------------------------------------------- duplicates


def test_copies_that_differ_in_size_noise_or_brightness_have_the_same_hash_and_others_do_not():
    rng = np.random.default_rng(0)
    images = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), 2)) for _ in range(20)
    ]
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    hashes = quality.difference_hash(stack)
    assert len(set(hashes)) == 20
    darker = (stack.float() * 0.7).round().to(torch.uint8)
    small = (
        torch.nn.functional.interpolate(stack.float(), (32, 32), mode="bilinear", antialias=True)
        .round()
        .to(torch.uint8)
    )
    for other in (darker, small):
        bits = np.unpackbits((quality.difference_hash(other) ^ hashes).view(np.uint8)).sum()
        assert bits <= 20 * 3  # of 64 bits each


def test_duplicates_name_the_first_image_that_looks_the_same(tmp_path):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    order = [0, 1, 0, 2, 1, 0]
    for number, which in enumerate(order):
        Image.fromarray(pictures[which]).save(tmp_path / f"{number}.png")
    store.write_imglist(tmp_path / "list.txt", [(f"{number}.png", -1) for number in range(len(order))])
    images = quality.data.ImageList(tmp_path / "list.txt", tmp_path, pre_size=16, image_size=16)
    assert quality.duplicates(images).tolist() == ["", "", "0.png", "", "1.png", "0.png"]


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
def test_the_filter_drops_what_it_names_and_says_why(rule, inliers, expected):
    val = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # half of them are nearer than 0.3
    assert quality.dropped(FOUND, FilterSettings(**rule), val, inliers).tolist() == expected


def test_training_gets_what_the_filter_leaves(chain, tiny, table):
    decide = quality.judge(tiny.config())
    bank, val = (
        quality.judged(decide, quality.data.id_loader(tiny.config(), split), torch.device("cpu"), "")[1]
        for split in ("train", "val")
    )
    nearest = torch.cdist(val, bank).sort(dim=1).values[:, 4]
    share = (nearest < table["distance"].median()).float().mean().item()  # some images lie on either side of it
    limit = nearest.quantile(share).item()
    config = tiny.method("dream_ood", "--dream.filter.distance", str(share))
    loader, identity = pipelines.outlier_set(config)
    kept = table["file"][table["distance"] > limit]
    assert [name for name, _ in loader.dataset.rows] == kept.tolist() and 0 < len(kept) < len(table)
    assert identity != chain.images.hash
    record = pd.read_parquet(quality.run(config).path / "quality.parquet")
    assert (record["dropped"] == "distance").sum() == len(table) - len(kept)


def test_a_filter_that_drops_everything_is_named_and_nothing_is_kept_of_it(chain, tiny):
    config = tiny.config("--dream.filter.confidence", "1e-9")
    with pytest.raises(
        InputError, match=r"command line: dream\.filter: drops all 24 images \(confidence 24\); loosen it"
    ):
        quality.run(config)


def test_without_a_filter_the_whole_set_is_trained_with(chain, tiny):
    imglist, folder, identity = quality.chosen(tiny.config())
    assert (imglist, folder, identity) == (chain.images.path / "imglist.txt", chain.images.path, chain.images.hash)


# ------------------------------------------------------------------------------------------------------------- command


def test_synthesize_prints_a_row_for_each_class_and_one_for_id_images(command, chain, tiny):
    done = command("synthesize", "--config", tiny.file)
    assert done.code == 0 and not done.err
    for name in [*chain.config.dream.class_names, "ID test"]:
        assert sum(line.split()[: len(name.split())] == name.split() for line in done.out.splitlines()) == 1
    assert done.out.startswith(str(chain.images.path))


# ------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_says_how_much_is_left_and_draws_nothing(command, chain, tiny, monkeypatch):
    monkeypatch.setattr(imagine, "PROBE_SECONDS", 0.2)
    before = sorted(path for path in tiny.root.rglob("*"))
    done = command("synthesize", "--config", tiny.file, "--dry-run", "--dream.synthesis.per_class", "7")
    assert done.code == 0 and sorted(path for path in tiny.root.rglob("*")) == before
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["images"] == "42 (6 classes of 7)" and lines["shards"] == "5 of 10 images, 0 of them done"
    assert "kB (" in lines["disk"] or "bytes" in lines["disk"]
    assert "for the 42 images to draw" in lines["time"] and "before" not in lines


def test_a_dry_run_of_a_finished_set_has_nothing_left(command, chain, tiny, monkeypatch):
    monkeypatch.setattr(imagine, "PROBE_SECONDS", 0.1)
    done = command("synthesize", "--dry-run", "--config", tiny.file)
    assert "3 of them done" in done.out and "0 s for the 0 images" in done.out


def test_a_dry_run_before_anything_is_made_probes_an_untrained_generator_and_names_the_stages(
    command, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(imagine, "PROBE_SECONDS", 0.1)
    done = command("synthesize", "--dry-run", "--config", tiny.file, "--dream.cache_dir", tmp_path / "none")
    assert done.code == 0 and not (tmp_path / "none").exists()
    assert "of an untrained generator" in done.out and "images/s on cpu" in done.out
    assert "not made yet, and not in the time: " in done.out


def test_a_dry_run_probes_a_given_pipeline_before_anything_is_made(
    command, tiny, pipeline_folder, names, tmp_path, monkeypatch
):
    monkeypatch.setattr(imagine, "PROBE_SECONDS", 0.1)
    given = ["--dream.generator", pipeline_folder, "--dream.class_names", str(names), "--dataset.num_classes", "3"]
    done = command("synthesize", "--dry-run", "--config", tiny.file, *given, "--dream.cache_dir", tmp_path / "none")
    assert done.code == 0 and "images/s on cpu" in done.out and "before" in done.out
    assert not (tmp_path / "none").exists()


def test_the_probe_counts_images_and_bytes(chain):
    pipeline = imagine.load_pipeline(chain.generator, chain.config)
    settings = imagine.settings(chain.config, "dream").synthesis
    rate, size = imagine.probe(imagine.Imaginer(pipeline, chain.config.dream.class_names, settings), 0.2)
    assert rate > 1 and 60 < size < 3 * 16 * 16 + 200
    assert outliers.load(chain.outliers)[0]["class"].nunique() == 6


@pytest.mark.parametrize("seconds, words", [(0, "0 s"), (59.4, "59.4 s"), (180, "3 min"), (3 * 3600, "3 h")])
def test_times_are_in_words(seconds, words):
    assert imagine.duration(seconds) == words
