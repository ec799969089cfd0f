"""Embeddings to images: the right embedding, the right seed, the right row, and the same bytes after a crash."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple, get_args

import diffusers
import families
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from openood_dream import anchors, data, imagine, outliers, store
from openood_dream.anchors import Source
from openood_dream.config import Config, InputError, SynthesisSettings

TEMPLATE = "A high-quality image of the {}"


def synthesis(**changes) -> SynthesisSettings:
    return SynthesisSettings(**{"steps": 3, "guidance": 3.0, "size": 16, "save_size": None} | changes)


def pipeline(folder: Path, tiny, scheduler: str = "dpmsolver++") -> StableDiffusionPipeline:
    return imagine.load_pipeline(Source(str(folder), None, None), tiny.config("--dream.synthesis.scheduler", scheduler))


@pytest.fixture(scope="module")
def pipe(pipeline_folder, tiny) -> StableDiffusionPipeline:
    return pipeline(pipeline_folder, tiny)


@pytest.fixture(scope="module")
def draw(pipe, names):
    """Draws images (B, 3, S, S) as int for labels, tokens and seeds, with some settings changed."""

    def draw(labels, tokens, seeds, **changes) -> torch.Tensor:
        imaginer = imagine.Imaginer(pipe, names, synthesis(**changes))
        return imaginer(torch.tensor(labels), tokens, list(seeds)).int()

    return draw


def anchor(pipe, name: str) -> torch.Tensor:
    (token,) = pipe.tokenizer(name, add_special_tokens=False).input_ids
    return pipe.text_encoder.get_input_embeddings().weight.detach()[token]


def tokens_like(pipe, count: int) -> torch.Tensor:
    """Random embeddings as long as the tokens of the pipeline."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    return torch.nn.functional.normalize(torch.randn(count, table.shape[1]), dim=1) * table.norm(dim=1).mean()


# ------------------------------------------------------------------------------------------------------------- drawing


def test_plain_prompts_give_the_images_that_diffusers_gives_for_the_same_words(pipe, draw, names):
    labels, seeds = [0, 2, 0], [3, 4, 2**40]
    noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    expected = pipe(
        prompt=[TEMPLATE.format(names[label]) for label in labels],
        negative_prompt=["blurry"] * 3,
        latents=noise,
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="np",
    ).images
    found = draw(labels, None, seeds, negative_prompt="blurry")
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - 255 * expected).max() <= 1


def test_the_anchor_as_embedding_gives_the_very_image_of_the_plain_prompt(pipe, draw):
    tokens = torch.stack([anchor(pipe, "cat"), anchor(pipe, "dog")])
    assert torch.equal(draw([0, 2], tokens, [5, 6]), draw([0, 2], None, [5, 6]))


def test_an_image_depends_on_its_label_embedding_and_seed_and_not_on_its_batch(pipe, draw):
    labels, tokens, seeds = [0, 1, 2, 1, 0], tokens_like(pipe, 5), range(10, 15)
    batch = draw(labels, tokens, seeds)
    order = [3, 0, 4, 2, 1]
    shuffled = draw([labels[i] for i in order], tokens[order], [seeds[i] for i in order])
    for place, i in enumerate(order):
        # float sums depend on the size of a batch, which can move a pixel by a rounding step
        assert (shuffled[place] - batch[i]).abs().max() <= 1
        assert (draw([labels[i]], tokens[i : i + 1], [seeds[i]])[0] - batch[i]).abs().max() <= 1


def test_another_embedding_or_another_seed_gives_another_image(pipe, draw):
    tokens = tokens_like(pipe, 2)
    images = draw([0, 0, 0], tokens[[0, 1, 0]], [7, 7, 8])
    assert (images[0] - images[1]).abs().max() > 3 and (images[0] - images[2]).abs().max() > 3


def test_a_greater_move_of_the_embedding_changes_the_image_more(pipe, draw):
    start, away = anchor(pipe, "cat"), tokens_like(pipe, 1)[0]
    tokens = torch.stack([start + step * (away - start) for step in (0, 0.05, 1)])
    plain, near, far = draw([0] * 3, tokens, [1] * 3).float()
    assert 0 < (near - plain).square().mean() < (far - plain).square().mean()


@pytest.mark.parametrize("guidance, rows", [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_without_guidance_the_unconditional_half_is_not_computed(pipe, draw, guidance, rows):
    seen = []
    hook = pipe.unet.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    draw([0, 1], tokens_like(pipe, 2), [0, 1], guidance=guidance)
    hook.remove()
    assert set(seen) == {rows}


def test_guidance_and_negative_prompt_change_the_image(pipe, draw):
    token = tokens_like(pipe, 1)
    plain = draw([0], token, [0], guidance=1.0)
    for changes in ({"guidance": 4.0}, {"guidance": 4.0, "negative_prompt": "blurry"}):
        assert not torch.equal(plain, draw([0], token, [0], **changes))
    assert torch.equal(plain, draw([0], token, [0], guidance=1.0, negative_prompt="blurry"))


def test_images_are_drawn_in_one_size_and_saved_in_another(pipe, draw):
    token = tokens_like(pipe, 1)
    assert draw([0], token, [0], size=None).shape == (1, 3, 16, 16)  # the pipeline's own size
    assert draw([0], token, [0], size=24, save_size=None).shape == (1, 3, 24, 24)
    full, half = draw([0], token, [0]), draw([0], token, [0], save_size=8)
    picture = Image.fromarray(full[0].permute(1, 2, 0).numpy().astype(np.uint8))
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(half[0].permute(1, 2, 0).numpy() - expected).max() <= 1


@pytest.mark.parametrize("scheduler", imagine.SCHEDULERS)
def test_every_scheduler_draws(pipeline_folder, tiny, names, scheduler):
    pipe = pipeline(pipeline_folder, tiny, scheduler)
    assert type(pipe.scheduler).__name__ == imagine.SCHEDULERS[scheduler][0]
    images = imagine.Imaginer(pipe, names, synthesis())(torch.tensor([0, 1]), tokens_like(pipe, 2), [1, 2])
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.uint8 and images.float().std() > 1


def test_the_config_allows_every_scheduler_that_there_is():
    allowed = get_args(SynthesisSettings.model_fields["scheduler"].annotation)
    assert set(allowed) == {imagine.OWN, *imagine.SCHEDULERS}


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_the_pipeline_has_the_number_format_that_was_asked_for(tiny, pipeline_folder, name):
    config = tiny.config("--dream.synthesis.dtype", name)
    pipe = imagine.load_pipeline(Source(str(pipeline_folder), None, None), config)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {getattr(torch, name)}


def test_the_safety_checker_is_left_out(pipe):
    assert pipe.safety_checker is None


def test_embeddings_of_another_width_are_named(pipe, names):
    with pytest.raises(InputError, match=r"takes token embeddings of 16 numbers, the anchors have 768"):
        imagine.check_anchors(imagine.Imaginer(pipe, names, synthesis()), torch.randn(3, 768))


# ---------------------------------------------------------------------------------- every pipeline of the family


class Family(NamedTuple):
    """A saved pipeline of one architecture, loaded by us, its anchors, and the settings that suit it."""

    name: str
    folder: Path
    pipe: imagine.Pipeline
    anchors: torch.Tensor
    settings: SynthesisSettings

    def draw(self, names, labels, tokens, seeds) -> torch.Tensor:
        return imagine.Imaginer(self.pipe, names, self.settings)(torch.tensor(labels), tokens, list(seeds)).int()


@pytest.fixture(scope="module", params=families.SCHEDULERS)
def family(request, tmp_path_factory, tiny, names) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    families.save(folder / "pipeline", request.param, names)
    few = {"lcm": {"steps": 4, "guidance": 0.0}, "turbo": {"steps": 1, "guidance": 0.0}}.get(request.param, {})
    given = {"generator": str(folder / "pipeline"), "class_names": str(names), "synthesis.scheduler": "own"}
    words = [word for key, value in given.items() for word in (f"--dream.{key}", value)]
    config = tiny.config(*words, "--dataset.num_classes", "3", "--dream.cache_dir", str(folder / "dream"))
    pipe = imagine.load_pipeline(Source(str(folder / "pipeline"), None, None), config)
    found = anchors.load(anchors.run(config))
    return Family(request.param, folder / "pipeline", pipe, found, synthesis(scheduler="own", **few))


def test_each_family_draws_plain_prompts_as_diffusers_alone_does(family, names):
    pipe = diffusers.DiffusionPipeline.from_pretrained(family.folder)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in generators])
    expected = pipe(
        prompt=[TEMPLATE.format(names[label]) for label in (0, 1, 2)],
        latents=noise,
        generator=generators,
        height=16,
        width=16,
        num_inference_steps=family.settings.steps,
        guidance_scale=family.settings.guidance,
        output_type="np",
    ).images
    found = family.draw(names, [0, 1, 2], None, [3, 4, 5])
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - 255 * expected).max() <= 1


def test_in_each_family_the_anchor_gives_the_very_image_of_the_plain_prompt(family, names):
    plain = family.draw(names, [0, 2], None, [5, 6])
    assert torch.equal(family.draw(names, [0, 2], family.anchors[[0, 2]], [5, 6]), plain)


def test_in_each_family_two_embeddings_with_one_seed_give_different_images(family, names):
    tokens = torch.nn.functional.normalize(torch.randn(2, family.anchors.shape[1]), dim=1) * family.anchors[0].norm()
    one, other = family.draw(names, [0, 0], tokens, [7, 7])
    assert (one - other).abs().max() > 3


def test_in_each_family_an_image_does_not_depend_on_its_batch(family, names):
    together = family.draw(names, [0, 1, 2], family.anchors, [5, 6, 7])
    for label in range(3):
        alone = family.draw(names, [label], family.anchors[[label]], [5 + label])[0]
        assert (alone - together[label]).abs().max() <= 1


def test_anchors_of_two_text_encoders_are_the_rows_of_both(tmp_path, tiny, names):
    families.save(tmp_path / "pipeline", "sdxl", names)
    words = ["--dream.generator", str(tmp_path / "pipeline"), "--dream.class_names", str(names)]
    artifact = anchors.run(tiny.config(*words, "--dataset.num_classes", "3", "--dream.cache_dir", str(tmp_path)))
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "pipeline")
    (token,) = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    tables = [encoder.get_input_embeddings().weight[token] for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    assert torch.equal(anchors.load(artifact)[names.index("dog")], torch.cat(tables))


def test_a_pipeline_of_another_family_is_named(tmp_path, tiny):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}')
    with pytest.raises(InputError, match=r"is a FluxPipeline; expected a pipeline of the Stable Diffusion family"):
        imagine.load_pipeline(Source(str(tmp_path), None, None), tiny.config())


def test_slices_give_the_same_images(pipeline_folder, tiny, names, draw, pipe):
    config = tiny.config("--dream.synthesis.slicing", "true")
    sliced = imagine.load_pipeline(Source(str(pipeline_folder), None, None), config)
    assert sliced.vae.use_slicing and not pipe.vae.use_slicing
    tokens = tokens_like(pipe, 3)
    found = imagine.Imaginer(sliced, names, synthesis())(torch.tensor([0, 1, 2]), tokens, [1, 2, 3]).int()
    assert (found - draw([0, 1, 2], tokens, [1, 2, 3])).abs().max() <= 1


@pytest.mark.slow
def test_a_compiled_unet_gives_the_same_images(pipeline_folder, tiny, names, draw, pipe):
    config = tiny.config("--dream.synthesis.compile", "true")
    compiled = imagine.load_pipeline(Source(str(pipeline_folder), None, None), config)
    tokens = tokens_like(pipe, 2)
    found = imagine.Imaginer(compiled, names, synthesis())(torch.tensor([0, 1]), tokens, [1, 2]).int()
    assert (found - draw([0, 1], tokens, [1, 2])).abs().max() <= 1


def test_the_text_encoder_runs_once_per_batch_and_the_negative_prompt_once_per_run(pipe, names):
    seen = []
    hook = pipe.text_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    imaginer = imagine.Imaginer(pipe, names, synthesis())
    for _ in range(3):
        imaginer(torch.tensor([0, 1]), tokens_like(pipe, 2), [1, 2])
    hook.remove()
    assert seen == [1, 2, 2, 2]


def test_too_little_memory_is_said_with_a_remedy(pipe, draw, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(pipe.unet, "forward", full)
    with pytest.raises(InputError, match=r"dream\.synthesis\.batch_size: 1 images of 16 pixels do not fit .*slicing"):
        draw([0], tokens_like(pipe, 1), [0])


def test_a_name_of_several_tokens_is_whole_in_a_plain_prompt(pipe, draw, names):
    """And its embedding takes the place of all of them, which is another prompt."""
    fish = names.index("aquarium fish")
    first = pipe.text_encoder.get_input_embeddings().weight.detach()[
        pipe.tokenizer("aquarium", add_special_tokens=False).input_ids
    ]
    assert not torch.equal(draw([fish], None, [3]), draw([fish], first, [3]))


# ------------------------------------------------------------------------------------------------------ what is drawn


def test_classes_take_turns_and_embeddings_are_used_evenly():
    table = pd.DataFrame({"class": [0] * 3 + [1] * 5})
    rows = imagine.choose(table, per_class=7, classes=2, seed=0)
    assert table["class"].to_numpy()[rows].tolist() == [0, 1] * 7
    assert np.bincount(rows[::2]).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert sorted(np.bincount(rows[1::2])[3:]) == [1, 1, 1, 2, 2]
    assert (rows == imagine.choose(table, 7, 2, 0)).all() and not (rows == imagine.choose(table, 7, 2, 1)).all()


def test_the_first_images_do_not_change_when_more_are_asked_for():
    table = pd.DataFrame({"class": np.repeat([0, 1, 2], 9)})
    assert (imagine.choose(table, 12, 3, 0)[:12] == imagine.choose(table, 4, 3, 0)).all()


def test_a_class_without_embeddings_is_named():
    with pytest.raises(InputError, match=r"dream\.outliers: class 1 has no outlier embedding"):
        imagine.choose(pd.DataFrame({"class": [0, 2]}), 2, 3, 0)


def test_seeds_of_images_differ_and_stay(chain):
    seeds = [imagine.image_seed(seed, number) for seed in range(3) for number in range(200)]
    assert len(set(seeds)) == 600 and all(0 <= seed < 2**63 for seed in seeds)
    assert imagine.image_seed(0, 0) == int(hashlib.sha256(b"0/0").hexdigest()[:12], 16)


def test_folders_are_named_after_the_classes_without_spaces_and_none_twice():
    folders = imagine.folder_names(["aquarium fish", "aquarium_fish", "../up", "öl", "  ", "a/b", "..", "shards"])
    assert len(set(folders)) == 8 and folders[3] == "öl" and folders[5] == "a_b" and "shards" not in folders
    for folder in folders:
        assert folder and not set(folder) & set(" /\\") and not folder.startswith(".")


# ------------------------------------------------------------------------------------------------------ the image set


@pytest.fixture(scope="module")
def table(chain) -> pd.DataFrame:
    return pd.read_parquet(chain.images.path / "images.parquet")


def test_the_set_has_as_many_images_of_every_class_as_asked_for(chain, table):
    assert table["class"].value_counts().to_dict() == dict.fromkeys(range(6), 4)
    files = sorted(path.relative_to(chain.images.path).as_posix() for path in chain.images.path.rglob("*.png"))
    assert files == sorted(table["file"]) and chain.images.manifest["images"] == 24
    assert {Path(file).parent.name for file in files} == set(chain.config.dream.class_names)


def test_the_imglist_is_openoods_and_outliers_have_no_class(chain, table):
    rows = store.read_imglist(chain.images.path / "imglist.txt")
    assert rows == [(file, -1) for file in table["file"]]
    for file, _ in rows:
        with Image.open(chain.images.path / file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))


def test_every_row_says_what_its_image_was_made_from(chain, table):
    found, _ = outliers.load(chain.outliers)
    assert table["seed"].nunique() == len(table)
    for row in table.itertuples():
        assert hashlib.sha256((chain.images.path / row.file).read_bytes()).hexdigest() == row.sha256
    assert (found["class"].to_numpy()[table["embedding"]] == table["class"]).all()
    assert np.allclose(found["distance"].to_numpy()[table["embedding"]], table["distance"])
    names = np.array(chain.config.dream.class_names)[table["class"]]
    assert table["prompt"].tolist() == [TEMPLATE.format(name) for name in names]
    assert set(table["generator"]) == {chain.generator.path}


def test_each_image_can_be_drawn_again_from_its_row_alone(chain, table):
    _, embeddings = outliers.load(chain.outliers)
    settings = imagine.settings(chain.config, "dream").synthesis
    pipe = imagine.load_pipeline(chain.generator, chain.config)
    imaginer = imagine.Imaginer(pipe, chain.config.dream.class_names, settings)
    for row in table.sample(3).to_dict("records"):
        again = imaginer(torch.tensor([row["class"]]), embeddings[[row["embedding"]]], [row["seed"]])[0]
        saved = np.asarray(Image.open(chain.images.path / row["file"])).astype(int)
        assert np.abs(again.permute(1, 2, 0).numpy() - saved).max() <= 1


def digests(folder: Path) -> dict[str, str]:
    names = [*folder.rglob("*.png"), folder / "imglist.txt"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def test_a_set_that_lost_a_shard_is_completed_with_the_same_bytes(chain, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.root / "dream", tmp_path / "dream")
    folder = tmp_path / "dream" / chain.images.path.name
    expected, table = digests(folder), pd.read_parquet(folder / "images.parquet")
    lost = pd.read_parquet(store.shard_table(folder, 1))
    assert 0 < len(lost) < len(table)
    for file in ("manifest.json", "images.parquet", "imglist.txt", "shards/000001.parquet", *lost["file"]):
        (folder / file).unlink()
    (folder / lost["file"][0]).write_bytes(b"half an image")
    numbers, draw = [], imagine.Shards.draw
    monkeypatch.setattr(
        imagine.Shards, "draw", lambda self, number, *rest: numbers.append(number) or draw(self, number, *rest)
    )
    again = imagine.run(tiny.config("--dream.cache_dir", str(tmp_path / "dream")))
    assert not again.reused and again.path == folder and numbers == [1]
    assert digests(folder) == expected
    columns = table.columns.drop("generator")  # the copy's generator lies elsewhere
    assert pd.read_parquet(folder / "images.parquet")[columns].equals(table[columns])


def test_an_interruption_within_a_shard_lists_no_image_of_it(chain, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("images-*"))
    config = tiny.config("--dream.cache_dir", str(tmp_path / "dream"))
    calls, imaginer = [], imagine.Imaginer.__call__

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:  # in the second shard, which has two batches
            raise KeyboardInterrupt
        return imaginer(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(imagine.Imaginer, "__call__", interrupted)
        imagine.run(config)
    (folder,) = (tmp_path / "dream").glob("images-*")
    assert store.complete(folder) is None and not (folder / "imglist.txt").exists()
    assert [path.name for path in (folder / "shards").iterdir()] == ["000000.parquet"]
    assert not imagine.run(config).reused and digests(folder) == digests(chain.images.path)


def test_the_image_set_is_reused_until_its_settings_change(chain, tiny):
    assert imagine.run(tiny.config()).reused
    changed = imagine.run(tiny.config("--dream.synthesis.seed", "1", "--dream.synthesis.per_class", "1"))
    assert not changed.reused and changed.path != chain.images.path
    assert set(digests(changed.path).values()).isdisjoint(digests(chain.images.path).values())


def test_plain_samples_are_those_of_the_plain_prompts(chain, tiny):
    config: Config = tiny.config()
    images = store.read_tensors(imagine.plain(config, 3).path / "plain.safetensors")["images"]
    assert images.shape == (6, 3, 3, 16, 16) and images.dtype == torch.uint8
    pipe = imagine.load_pipeline(chain.generator, config)
    imaginer = imagine.Imaginer(pipe, config.dream.class_names, imagine.settings(config, "dream").synthesis)
    again = imaginer(torch.tensor([4]), None, [imagine.image_seed(0, 4 * 3 + 1)])[0]
    assert (again.int() - images[4, 1].int()).abs().max() <= 1


def test_plain_samples_of_some_classes_are_those_that_all_have(chain, tiny):
    every, some = (
        store.read_tensors(imagine.plain(tiny.config(), 3, labels).path / "plain.safetensors")["images"]
        for labels in (None, [1, 4])
    )
    assert some.shape == (2, *every.shape[1:]) and (some.int() - every[[1, 4]].int()).abs().max() <= 1


def test_plain_samples_of_a_trained_generator_are_those_of_its_anchors(chain, tiny):
    images = store.read_tensors(imagine.plain(tiny.config(), 3).path / "plain.safetensors")["images"]
    settings = imagine.settings(chain.config, "dream").synthesis
    imaginer = imagine.Imaginer(
        imagine.load_pipeline(chain.generator, chain.config), chain.config.dream.class_names, settings
    )
    token = anchors.load(chain.anchors)[[4]]
    again = imaginer(torch.tensor([4]), token, [imagine.image_seed(0, 4 * 3 + 1)])[0]
    assert (again.int() - images[4, 1].int()).abs().max() <= 1


# ----------------------------------------------------------------------------------------------------------- residuals


def test_residuals_are_what_the_autoencoder_loses_of_training_images(chain, tiny):
    config = tiny.config("--dream.synthesis.residual", "true")
    pipe = imagine.load_pipeline(chain.generator, config)
    settings = imagine.settings(config, "dream").synthesis
    artifact = imagine.residuals(config, imagine.Imaginer(pipe, config.dream.class_names, settings), chain.generator)
    found = imagine.load_residuals(artifact)
    train = data.id_loader(config, "train").dataset
    assert found.dtype == torch.int16 and found.shape == (min(1024, len(train)), 3, 16, 16)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for place in (0, len(found) - 1):
        image = np.array(train.image(int(order[place])).resize((16, 16), Image.Resampling.BILINEAR))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            again = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        lost = (image - (again[0].permute(1, 2, 0).numpy() + 1) * 127.5).transpose(2, 0, 1)
        assert np.abs(lost - found[place].numpy()).max() <= 1


def test_an_image_gets_the_residual_that_its_seed_picks(chain, tiny, table):
    changed = imagine.run(tiny.config("--dream.synthesis.residual", "true"))
    assert changed.path != chain.images.path
    (folder,) = (tiny.root / "dream").glob("residuals-*")
    every = store.read_tensors(folder / "residuals.safetensors")["residuals"].numpy()
    for row in table.itertuples():
        before, after = (
            np.asarray(Image.open(root / row.file)).astype(int) for root in (chain.images.path, changed.path)
        )
        lost = every[row.seed % len(every)].transpose(1, 2, 0)
        assert np.abs((before + lost).clip(0, 255) - after).max() <= 1


def test_image_sets_without_residuals_keep_the_names_that_they_had(tiny):
    settings = imagine.settings(tiny.config(), "dream").synthesis
    assert "residual" not in imagine.drawing(settings)
    assert imagine.drawing(settings.model_copy(update={"residual": True}))["residual"] is True


# ------------------------------------------------------------------------------------------------------------- latents


def test_latents_are_what_the_images_are_decoded_from(chain, tiny):
    artifact = imagine.latents(tiny.config())
    latents = store.read_tensors(artifact.path / "latents.safetensors")["latents"]
    table, images = (
        pd.read_parquet(path) for path in (artifact.path / "latents.parquet", chain.images.path / "images.parquet")
    )
    assert latents.shape == (len(images), 8, 4, 4) and imagine.latents(tiny.config()).reused
    assert table.equals(images[["class", "embedding", "seed"]])
    vae = diffusers.AutoencoderKL.from_pretrained(chain.generator.path, subfolder="vae")
    with torch.inference_mode():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    for row in (0, 13, len(images) - 1):
        saved = np.asarray(Image.open(chain.images.path / images["file"][row])).astype(float)
        again = (decoded[row].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255
        assert np.abs(again - saved).max() <= 1


def test_interrupted_latents_go_on_with_the_shard_that_was_missing(chain, tiny, tmp_path, monkeypatch):
    expected = imagine.latents(tiny.config()).path / "latents.safetensors"
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", ignore=shutil.ignore_patterns("latents-*"))
    config, seen, draw = tiny.config("--dream.cache_dir", str(tmp_path / "dream")), [], imagine.Imaginer.latents

    def interrupted(self, labels, tokens, seeds):
        seen.append(len(seeds))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return draw(self, labels, tokens, seeds)

    monkeypatch.setattr(imagine.Imaginer, "latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imagine.latents(config)
    again = imagine.latents(config)
    assert seen == [8, 2, 8, 2, 8, 2, 4]  # of 24 latents in shards of 10 and batches of 8, ten were there already
    assert (again.path / "latents.safetensors").read_bytes() == expected.read_bytes()
