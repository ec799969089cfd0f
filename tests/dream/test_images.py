"""The image set: the right embedding, seed and row for each image, and the same bytes after a crash."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from openood_dream.datasets.imglist import read_imglist
from openood_dream.dream import images
from openood_dream.dream.guide_settings import GuideSettings
from openood_dream.dream.image_set import read_images, shard_table
from openood_dream.dream.images import Shards, choose, folder_names, load_latents, set_inputs
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.residuals import make_residuals
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.errors import InputError
from openood_dream.store.artifacts import complete, folder_of

TEMPLATE = "A high-quality image of the {}"


@pytest.fixture(scope="module")
def imaginer(dream) -> Imaginer:
    """What drew the images of the tiny chain."""
    settings = dream.settings.synthesis
    return Imaginer(load_pipeline(dream.source, settings, "cpu"), dream.names, settings)


@pytest.fixture(scope="module")
def table(dream) -> pd.DataFrame:
    return read_images(dream.images.path)


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.png"), folder / "imglist.txt"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------------ what is drawn


def test_classes_take_turns_and_embeddings_are_used_evenly():
    table = pd.DataFrame({"class": [0] * 3 + [1] * 5})
    rows = choose(table, per_class=7, classes=2, seed=0)
    assert table["class"].to_numpy()[rows].tolist() == [0, 1] * 7
    assert np.bincount(rows[::2]).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert sorted(np.bincount(rows[1::2])[3:]) == [1, 1, 1, 2, 2]
    assert (rows == choose(table, 7, 2, 0)).all() and not (rows == choose(table, 7, 2, 1)).all()


def test_first_images_stay_when_more_are_asked_for():
    table = pd.DataFrame({"class": np.repeat([0, 1, 2], 9)})
    assert (choose(table, 12, 3, 0)[:12] == choose(table, 4, 3, 0)).all()


def test_rows_of_classes_in_any_order():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    slow = [
        np.resize(np.random.default_rng([3, label]).permutation(np.flatnonzero(labels == label)), 50)
        for label in range(5)
    ]
    assert (choose(pd.DataFrame({"class": labels}), 50, 5, 3).reshape(50, 5).T == np.stack(slow)).all()


def test_class_without_embeddings():
    with pytest.raises(InputError, match=r"dream\.outliers: class 1 has no outlier embedding"):
        choose(pd.DataFrame({"class": [0, 2]}), 2, 3, 0)


def test_folder_names():
    folders = folder_names(["aquarium fish", "aquarium_fish", "../up", "öl", "  ", "a/b", "..", "shards"])
    assert len(set(folders)) == 8 and folders[3] == "öl" and folders[5] == "a_b" and "shards" not in folders
    for folder in folders:
        assert folder and not set(folder) & set(" /\\") and not folder.startswith(".")


# ------------------------------------------------------------------------------------------------------ the image set


def test_as_many_images_of_every_class_as_asked_for(dream, table):
    assert table["class"].value_counts().to_dict() == dict.fromkeys(range(6), 4)
    folder = dream.images.path
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert files == sorted(table["file"]) and dream.images.manifest["images"] == 24
    assert {Path(file).parent.name for file in files} == set(dream.names)


def test_imglist_is_openoods_and_outliers_have_no_class(dream, table):
    rows = read_imglist(dream.images.path / "imglist.txt")
    assert rows == [(file, -1) for file in table["file"]]
    for file, _ in rows:
        with Image.open(dream.images.path / file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))


def test_inliers_keep_their_class(tiny):
    inliers = ["--dream.outliers.method", "inlier", "--dream.synthesis.per_class", "1"]
    found = tiny.config(*inliers).imagination.images
    assert [label for _, label in read_imglist(found.path / "imglist.txt")] == list(range(6))


def test_every_row_says_what_its_image_was_made_from(dream, table):
    found, _ = load_outliers(dream.outliers)
    assert table["seed"].nunique() == len(table)
    for row in table.itertuples():
        assert hashlib.sha256((dream.images.path / row.file).read_bytes()).hexdigest() == row.sha256
    assert (found["class"].to_numpy()[table["embedding"]] == table["class"]).all()
    assert np.allclose(found["distance"].to_numpy()[table["embedding"]], table["distance"])
    names = np.array(dream.names)[table["class"]]
    assert table["prompt"].tolist() == [TEMPLATE.format(name) for name in names]
    assert set(table["generator"]) == {dream.source.path}


def test_image_can_be_drawn_again_from_its_row_alone(dream, table, imaginer):
    _, embeddings = load_outliers(dream.outliers)
    for row in table.sample(3, random_state=0).to_dict("records"):
        token = embeddings[torch.tensor([row["embedding"]])]
        again = imaginer(torch.tensor([row["class"]]), token, [row["seed"]])[0]
        saved = np.asarray(Image.open(dream.images.path / row["file"])).astype(int)
        assert np.abs(again.permute(1, 2, 0).numpy() - saved).max() <= 1


def test_lost_shard_is_drawn_again_with_the_same_bytes(dream, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.root / "dream", tmp_path / "dream")
    folder = tmp_path / "dream" / dream.images.path.name
    expected, table = digests(folder), pd.read_parquet(folder / "images.parquet")
    lost = pd.read_parquet(shard_table(folder, 1))
    assert 0 < len(lost) < len(table)
    for file in ("manifest.json", "images.parquet", "imglist.txt", "shards/000001.parquet", *lost["file"]):
        (folder / file).unlink()
    (folder / lost["file"][0]).write_bytes(b"half an image")
    numbers, draw = [], Shards.draw
    monkeypatch.setattr(Shards, "draw", lambda self, number, *rest: numbers.append(number) or draw(self, number, *rest))
    again = tiny.config("--dream.cache_dir", str(tmp_path / "dream")).imagination.images
    assert not again.reused and again.path == folder and numbers == [1]
    assert digests(folder) == expected
    columns = table.columns.drop("generator")  # the copy's generator lies elsewhere
    assert pd.read_parquet(folder / "images.parquet")[columns].equals(table[columns])


def test_interruption_within_a_shard_lists_no_image_of_it(dream, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("images-*"))
    config = tiny.config("--dream.cache_dir", str(tmp_path / "dream"))
    calls, call = [], Imaginer.__call__

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:  # in the second shard, which has two batches
            raise KeyboardInterrupt
        return call(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Imaginer, "__call__", interrupted)
        config.imagination.images  # noqa: B018
    (folder,) = (tmp_path / "dream").glob("images-*")
    assert complete(folder) is None and not (folder / "imglist.txt").exists()
    assert [path.name for path in (folder / "shards").iterdir()] == ["000000.parquet"]
    assert not config.imagination.images.reused and digests(folder) == digests(dream.images.path)


def test_reused_until_settings_change(dream, tiny):
    assert tiny.config().imagination.images.reused
    changed = tiny.config("--dream.synthesis.seed", "1", "--dream.synthesis.per_class", "1").imagination.images
    assert not changed.reused and changed.path != dream.images.path
    assert set(digests(changed.path).values()).isdisjoint(digests(dream.images.path).values())


# each key of dream.synthesis, with another value, and whether it has a say in what is drawn
KEYS = {
    "per_class": (5, True),
    "prompt": ("a photo of {}", True),
    "prompts": ({"one": "the {} of the image"}, True),
    "negative_prompt": ("blurry", True),
    "steps": (7, True),
    "scheduler": ("ddim", True),
    "guidance": (2.5, True),
    "batch_size": (3, False),
    "size": (64, True),
    "save_size": (8, True),
    "dtype": ("bfloat16", True),
    "offload": ("model", False),
    "vae_tiling": (True, True),
    "compile": (True, False),
    "residual": (True, True),
    "init": ("id", True),
    "strength": (0.3, False),
    "pair": (True, False),
    "call": ({"eta": 0.1}, True),
    "guide": (GuideSettings(image=0.1), False),  # the guide itself has, beside its judge
    "seed": (1, True),
    "shard_size": (20, True),
}
OF_STARTS = {"strength", "pair"}  # which have a say where drawing starts from ID images


@pytest.mark.parametrize("key", SynthesisSettings.model_fields)
def test_the_hash_has_what_decides_about_images_and_nothing_else(dream, key):
    value, decides = KEYS[key]
    plain = dream.settings.synthesis
    changed = plain.model_copy(update={key: value})
    assert getattr(plain, key) != value

    def folder(settings: SynthesisSettings, starts: Any = None, **more: str) -> Path:
        settings = settings.model_copy(update=more)
        inputs = set_inputs(dream.source, dream.outliers, dream.names, settings, starts=starts)
        return folder_of("dream", "images", inputs)

    assert (folder(plain) != folder(changed)) == decides
    started: Any = SimpleNamespace(identity={"train": "some"})
    from_images = {} if key == "init" else {"init": "id"}
    assert (folder(plain, started, **from_images) != folder(changed, started, **from_images)) == (
        decides or key in OF_STARTS
    )
    # pairs with noise as their start, from which strength is far
    assert (folder(plain, started) != folder(changed, started)) == (decides or key == "pair")


def test_finished_shards_stay_when_the_batch_is_made_smaller(dream, tiny, tmp_path, monkeypatch):
    """As the advice is where memory is short."""
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("images-*"))
    config, numbers, draw = ["--dream.cache_dir", str(tmp_path / "dream")], [], Shards.draw

    def interrupted(self, number, *rest):
        numbers.append(number)
        if len(numbers) == 2:
            raise KeyboardInterrupt
        return draw(self, number, *rest)

    monkeypatch.setattr(Shards, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.config(*config).imagination.images  # noqa: B018
    made = tiny.config(*config, "--dream.synthesis.batch_size", "3").imagination.images
    assert numbers == [0, 1, 1, 2] and made.path.name == dream.images.path.name
    for row in read_images(made.path).itertuples():
        again, whole = (
            np.asarray(Image.open(folder / row.file)).astype(int) for folder in (made.path, dream.images.path)
        )
        assert np.abs(again - whole).max() <= 1


def test_work_travels_to_other_machines(dream, tiny, tmp_path):
    """All that Ray's workers are given is picklable, and draws the same shard."""
    settings, train = dream.settings.synthesis, tiny.config().data.images("dataset", "train")
    train.__getitems__([0])  # decodes some of them, which stay at home
    lost = partial(make_residuals, source=dream.source, images=train, settings=settings, cache_dir=tmp_path)
    args = (dream.source, dream.outliers, dream.names, settings, tmp_path)
    work = partial(images.drawer, partial(Shards, *args, device="cpu", residuals=lost))
    sent = pickle.dumps(work)
    assert len(sent) < 3 * 16 * 16 * len(train)
    pickle.loads(sent)()(2)  # noqa: S301
    assert len(pd.read_parquet(shard_table(tmp_path, 2))) == 4
    assert list(tmp_path.glob("residuals-*"))


def test_ray_is_missed_before_anything_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "openood_dream.parallel.ray", raising=False)
    with pytest.raises(InputError, match="executor: ray is not installed"):
        tiny.config("--executor", "ray", "--dream.cache_dir", str(tmp_path / "new")).imagination.images  # noqa: B018
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------- latents


def test_latents_are_what_the_images_are_decoded_from(dream, tiny):
    table, rows = load_latents(dream.latents(24))
    drawn, found = read_images(dream.images.path), rows.all()
    assert found.shape == (len(drawn), 8, 4, 4) and tiny.config().imagination.latents(24).reused
    assert table.equals(drawn[["class", "embedding", "seed"]])
    vae = diffusers.AutoencoderKL.from_pretrained(dream.source.path, subfolder="vae")
    with torch.inference_mode():
        decoded = vae.decode(found / vae.config.scaling_factor).sample
    for row in (0, 13, len(drawn) - 1):
        saved = np.asarray(Image.open(dream.images.path / drawn["file"][row])).astype(float)
        again = (decoded[row].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255
        assert np.abs(again - saved).max() <= 1


def test_interrupted_latents_go_on_with_the_missing_shard(dream, tiny, tmp_path, monkeypatch):
    expected = load_latents(dream.latents(24))[1].all()
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("latents-*"))
    config, seen, draw = tiny.config("--dream.cache_dir", str(tmp_path / "dream")), [], Imaginer.latents

    def interrupted(self, labels, tokens, seeds, *rest):
        seen.append(len(seeds))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return draw(self, labels, tokens, seeds, *rest)

    monkeypatch.setattr(Imaginer, "latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        config.imagination.latents(24)
    again = config.imagination.latents(24)
    assert seen == [8, 2, 8, 2, 8, 2, 4]  # of 24 latents in shards of 10 and batches of 8, ten were there already
    assert torch.equal(load_latents(again)[1].all(), expected)
