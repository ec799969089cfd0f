"""The small generator learns, is an ordinary Stable Diffusion folder, and draws the class that the prompt names."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import anchors, data, generator, store
from openood_dream.config import GeneratorTraining
from openood_dream.prompts import Prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(chain) -> StableDiffusionPipeline:
    """The trained pipeline, loaded as anybody with diffusers alone would."""
    pipe = StableDiffusionPipeline.from_pretrained(chain.generator.path, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------------------------------------------- a usual pipeline


def test_diffusers_alone_draws_with_what_was_saved(pipeline):
    images = pipeline(["A high-quality image of the two"] * 2, num_inference_steps=2).images
    assert [image.size for image in images] == [(16, 16)] * 2
    assert isinstance(pipeline.vae, AutoencoderKL) and isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.text_encoder, CLIPTextModel) and isinstance(pipeline.tokenizer, CLIPTokenizer)


def test_class_names_and_prompt_are_words_of_its_vocabulary(pipeline):
    for word in [*data.DIGIT_NAMES, "image", "of", "the"]:
        assert len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) == 1


def test_the_anchors_are_still_what_they_were_before_training(chain, pipeline):
    before = load_file(f"{anchors.text_source(chain.config).path}/text_encoder/model.safetensors")
    table = next(weight for key, weight in before.items() if key.endswith("token_embedding.weight"))
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)
    ids = [pipeline.tokenizer(name, add_special_tokens=False).input_ids[0] for name in data.DIGIT_NAMES]
    assert torch.equal(table[ids], anchors.load(chain.anchors))


def test_text_transformer_and_noise_predictor_were_trained(chain, pipeline):
    start = load_file(f"{anchors.text_source(chain.config).path}/text_encoder/model.safetensors")
    end = pipeline.text_encoder.state_dict()
    moved = [key for key in start if not torch.equal(start[key], end[key])]
    assert moved and not any("token_embedding" in key for key in moved)


def test_latents_have_unit_variance_once_scaled(chain, pipeline):
    images = data.id_loader(chain.config, "train").dataset
    x = torch.stack([images[i]["data"] for i in range(len(images))])  # digits are normalised to [-1, 1]
    with torch.inference_mode():
        latents = pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.1)


def test_the_generator_is_reused_and_can_be_given_by_its_folder(chain, tiny, tmp_path):
    before = sorted((tiny.root / "dream").glob("generator-*"))
    assert generator.run(tiny.config()).identity == chain.generator.identity
    assert sorted((tiny.root / "dream").glob("generator-*")) == before
    given = tiny.config("--dream.generator", chain.generator.path, "--dream.cache_dir", str(tmp_path))
    assert generator.run(given).path == chain.generator.path
    assert torch.equal(anchors.load(anchors.run(given)), anchors.load(chain.anchors))


# ------------------------------------------------------------------------------------------------------------ training


def training(**changes) -> GeneratorTraining:
    return GeneratorTraining(**{"train": "small", "batch_size": 16, "steps": 1, "vae_steps": 1} | changes)


def test_training_the_autoencoder_lowers_its_error(tiny):
    images = data.id_loader(tiny.config(), "train").dataset
    errors = {}
    for steps in (1, 30):
        torch.manual_seed(0)
        vae = generator.small_vae(16)
        loader = data.loader(images, 16, shuffle=True)
        errors[steps] = generator.train_vae(vae, loader, training(vae_steps=steps), CPU, torch.float32)
    assert errors[30] < 0.6 * errors[1]


def train(steps: int, pipeline_folder, **changes) -> tuple[float, UNet2DConditionModel]:
    """A noise predictor after so many steps on latents whose classes differ, and the loss at the end."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder")
    prompts = [Prompt.of(tokenizer, "A high-quality image of the {}", name) for name in ("cat", "dog")]
    table = encoder.get_input_embeddings().weight.detach()
    targets = torch.stack([table[prompt.ids[prompt.position]] for prompt in prompts])
    labels = torch.arange(32) % 2
    unet = generator.small_unet(4, 16)
    mean = torch.where(labels.view(-1, 1, 1, 1) == 0, -1.0, 1.0).expand(-1, unet.config.in_channels, 4, 4)
    loss = generator.train_unet(
        unet,
        encoder,
        prompts,
        Prompt.plain(tokenizer, ""),
        (mean, torch.zeros_like(mean)),
        labels,
        targets,
        torch.nn.functional.normalize(targets[labels], dim=1),
        training(steps=steps, **changes),
        CPU,
        torch.float32,
    )
    return loss, unet


def test_training_the_noise_predictor_lowers_its_loss(pipeline_folder):
    start, _ = train(1, pipeline_folder)
    end, _ = train(60, pipeline_folder)
    assert end < 0.7 * start


@pytest.mark.parametrize("changes", [{"embedding_fraction": 0.0}, {"embedding_fraction": 1.0, "empty_fraction": 0.0}])
def test_every_share_of_own_embeddings_and_empty_prompts_can_be_trained(pipeline_folder, changes):
    loss, unet = train(2, pipeline_folder, **changes)
    assert 0 < loss < 3 and all(weight.isfinite().all() for weight in unet.parameters())


def test_images_for_the_autoencoder_are_between_minus_one_and_one_whatever_the_normalisation(tiny):
    ranges = []
    for kind in ("digits", "cifar10"):
        images = data.id_loader(tiny.config("--dataset.normalization_type", kind), "val").dataset
        ranges.append(generator.unit_range(images.__getitems__(range(20)), images))
    assert torch.allclose(ranges[0], ranges[1], atol=1e-5)
    assert ranges[0].min() >= -1 - 1e-5 and ranges[0].max() <= 1 + 1e-5 and ranges[0].max() > 0.9


def test_the_noise_schedule_is_stable_diffusions():
    betas = generator.noise_schedule().betas
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000)
    assert torch.allclose(betas, root**2, atol=1e-6)
    assert isinstance(generator.noise_schedule(), diffusers.DDPMScheduler)


# ------------------------------------------------------------------------------------------------------------- quality

# What the reduced test takes of the shipped digits benchmark, as `--key value` overrides: fewer steps need more guidance.
REDUCED = ["--dream.generator.steps", "1000", "--dream.synthesis.guidance", "1.5"]
SAMPLES_PER_CLASS = 30


@pytest.mark.slow
def test_a_classifier_of_real_digits_agrees_with_the_prompt(tmp_path):
    from openood_dream import imagine, pipelines, report
    from openood_dream.config import load_config
    from openood_dream.networks import get_network, load_weights

    config = load_config(["benchmarks/digits.yml", "benchmarks/methods/base.yml"], ["--root", str(tmp_path), *REDUCED])
    run = pipelines.train(config)
    net = get_network(config)
    load_weights(net, run / "best.ckpt")
    plain = imagine.plain(config, SAMPLES_PER_CLASS)
    images = store.read_tensors(plain.path / "plain.safetensors")["images"]
    truth = torch.arange(6).repeat_interleave(SAMPLES_PER_CLASS)
    guesses = report.classify(net, images.flatten(0, 1), config).argmax(1)
    assert (guesses == truth).float().mean() >= 0.85
