"""The trained generator is an ordinary Stable Diffusion folder, and draws the class that the prompt names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizerFast

from openood_dream.datasets.digits import DIGIT_NAMES
from openood_dream.device import pick_device
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.generator import stage
from openood_dream.dream.plain import load_plain
from openood_dream.dream.settings import GeneratorTraining, SynthesisSettings
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.networks.features import classify
from openood_dream.pipelines.train import train


@pytest.fixture(scope="module")
def pipeline(dream) -> StableDiffusionPipeline:
    """The trained pipeline, loaded as anybody with diffusers alone would."""
    pipe = StableDiffusionPipeline.from_pretrained(dream.source.path, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------------------------------------------- a usual pipeline


def test_diffusers_alone_draws_with_it(pipeline):
    images = pipeline(["A high-quality image of the two"] * 2, num_inference_steps=2).images
    assert [image.size for image in images] == [(16, 16)] * 2
    assert isinstance(pipeline.vae, AutoencoderKL) and isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.text_encoder, CLIPTextModel) and isinstance(pipeline.tokenizer, CLIPTokenizerFast)


def test_vocabulary(pipeline):
    for word in [*DIGIT_NAMES, "image", "of", "the"]:
        assert len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) == 1


def test_training_moves_the_text_transformer_but_not_the_anchors(dream, pipeline):
    start = load_file(f"{dream.text_source.path}/text_encoder/model.safetensors")
    end = pipeline.text_encoder.state_dict()
    moved = [key for key in start if not torch.equal(start[key], end[key])]
    assert moved and not any("token_embedding" in key for key in moved)
    table = pipeline.text_encoder.get_input_embeddings().weight
    ids = [pipeline.tokenizer(name, add_special_tokens=False).input_ids[0] for name in DIGIT_NAMES]
    assert torch.equal(table[ids], load_anchors(dream.anchors))


def test_scaled_latents_have_unit_variance(tiny, pipeline):
    images = tiny.config().data.images("dataset", "train")
    x = images.__getitems__(range(len(images)))["data"]  # digits are normalised to [-1, 1]
    with torch.inference_mode():
        latents = pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.1)


def test_reused_or_given_by_its_folder(dream, tiny, tmp_path):
    before = sorted((tiny.root / "dream").glob("generator-*"))
    assert tiny.config().imagination.source.identity == dream.source.identity
    assert sorted((tiny.root / "dream").glob("generator-*")) == before
    given = tiny.config("--dream.generator", dream.source.path, "--dream.cache_dir", str(tmp_path)).imagination
    assert given.source.path == dream.source.path and given.generator is None
    assert torch.equal(load_anchors(given.anchors), load_anchors(dream.anchors))


# --------------------------------------------------------------------------------------------- other sizes, many options

OTHER = """{train: small, text_dim: 16, size: 24, pooled_text: true, vae_channels: [8, 16], latent_channels: 4, unet_channels: [16, 32],
vae_steps: 3, steps: 4, batch_size: 8, ema: 0.9, precision: bfloat16, embedding_noise: 0.1, prediction: v_prediction,
min_snr: 5.0, checkpoint_every: 2, samples_every: 2}"""


@pytest.fixture
def cache(tiny, dream, tmp_path) -> Path:
    """A cache that already holds the stages before the generator."""
    for name in ("text", "anchors", "space"):
        for folder in (tiny.root / "dream").glob(f"{name}-*"):
            shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


@pytest.mark.slow
def test_size_capacity_prediction_and_samples(tiny, cache):
    layers = ["--dream.generator", OTHER, "--dream.cache_dir", str(cache), "--preprocessor.horizontal_flip", "true"]
    artifact = tiny.config(*layers).imagination.generator
    pipe = StableDiffusionPipeline.from_pretrained(artifact.path, safety_checker=None)
    assert pipe.vae_scale_factor == 2 and pipe.unet.config.sample_size == 12
    assert list(pipe.unet.config.block_out_channels) == [16, 32] and pipe.vae.config.latent_channels == 4
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe("A high-quality image of the two", num_inference_steps=1).images[0].size == (24, 24)
    grids = sorted(file.name for file in artifact.path.glob("*.png"))
    assert grids == ["samples-000002.png", "samples-000004.png", "samples.png"]
    assert Image.open(artifact.path / "samples.png").size == (8 * 25 + 1, 6 * 25 + 1)
    assert not list(artifact.path.glob("*.state"))


def test_samples_and_saving_do_not_change_the_weights(tiny, dream, cache):
    looks = ["--dream.generator.samples_every", "10", "--dream.generator.checkpoint_every", "7"]
    artifact = tiny.config("--dream.cache_dir", str(cache), *looks).imagination.generator
    assert artifact.hash == dream.generator.hash
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        first, second = (load_file(path / f"{part}.safetensors") for path in (dream.generator.path, artifact.path))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_mirrored_images_are_learned_both_ways_round(tiny, dream, cache, monkeypatch):
    learned = []

    def learn(nets, samples, *rest) -> float:
        learned.append((len(samples.mean), len(samples.std), len(samples.labels), len(samples.embeddings)))
        return 0.0

    monkeypatch.setattr(stage, "train_denoiser", learn)
    found = dream.settings
    for flip in (False, True):
        stage.make_generator(
            dream.space,
            dream.text_source,
            dream.anchors,
            dream.names,
            tiny.config().data.images("dataset", "train"),
            found.generator.model_copy(update={"vae_steps": 1}),
            space_settings=found.space,
            synthesis=found.synthesis,
            cache_dir=cache / str(flip),
            device="cpu",
            flip=flip,
        )
    count = len(tiny.config().data.images("dataset", "train"))
    assert learned == [(count,) * 4, (2 * count,) * 4]


# ----------------------------------------------------------------------------------------------------------- bad input


def test_size_that_levels_cannot_halve(tiny, tmp_path):
    config = tiny.config("--dream.generator.size", "18", "--dream.cache_dir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"dream\.generator\.size: 18 pixels .* a multiple of 4"):
        config.imagination.generator  # noqa: B018
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("size, fits", [(16, True), (None, True), (512, False)])
def test_images_of_another_size_than_trained(size, fits):
    training, synthesis = GeneratorTraining(train="small"), SynthesisSettings(size=size)
    stage.check_size(training, 16)
    if fits:
        stage.check_size(training, 16, synthesis)
        return
    with pytest.raises(InputError, match=r"dream\.synthesis\.size: 512 pixels, and the generator is trained with 16"):
        stage.check_size(training, 16, synthesis)


# ------------------------------------------------------------------------------------------------- processes, quality


@pytest.mark.slow
def test_two_processes_train_one_generator(tiny, cache):
    settings = ["--dream.cache_dir", str(cache), "--dream.generator.steps", "6", "--dream.generator.vae_steps", "4"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "openood_dream", "generator", "--config", tiny.file]
    done = subprocess.run(
        [*command, *settings], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    artifact = tiny.config(*settings).imagination.generator
    assert artifact.reused and artifact.manifest["processes"] == 2
    assert StableDiffusionPipeline.from_pretrained(artifact.path, safety_checker=None).unet.dtype == torch.float32


# What the reduced test takes of the shipped digits benchmark, as `--key value` overrides: fewer steps need more guidance.
REDUCED = ["--dream.generator.steps", "1000", "--dream.synthesis.guidance", "1.5"]
SAMPLES_PER_CLASS = 30


@pytest.mark.slow
def test_a_classifier_of_real_digits_agrees_with_the_prompt(tmp_path):

    experiment = load_config(
        ["benchmarks/digits.yml", "benchmarks/methods/base.yml"], ["--root", str(tmp_path), *REDUCED]
    )
    run, dataset = train(experiment), experiment.dataset
    net = get_network(experiment.network, image_size=dataset.image_size, num_classes=dataset.num_classes)
    load_weights(net, run / "best.ckpt")
    images = load_plain(experiment.imagination.plain(SAMPLES_PER_CLASS))
    truth = torch.arange(6).repeat_interleave(SAMPLES_PER_CLASS)
    logits = classify(net, images.flatten(0, 1), experiment.data.transform, pick_device("cpu"))
    assert (logits.argmax(1) == truth).float().mean() >= 0.85
