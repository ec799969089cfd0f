"""The small generator learns, is an ordinary Stable Diffusion folder, and draws the class that the prompt names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import anchors, data, generator, store
from openood_dream.config import GeneratorTraining, InputError
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
    return GeneratorTraining(
        **{"train": "small", "batch_size": 16, "steps": 1, "vae_steps": 1, "text_dim": 16} | changes
    )


def alone(folder: Path, every: int = 500) -> generator.Session:
    return generator.Session(Accelerator(), CPU, torch.float32, folder, every)


def train_vae(folder: Path, images: data.ImageList, steps: int, every: int = 500) -> tuple[float, AutoencoderKL]:
    """An autoencoder after so many steps, and its error at the end."""
    torch.manual_seed(0)
    settings = training(vae_steps=steps, vae_channels=[8, 16])
    vae = generator.small_vae(settings, 16)
    loader = data.loader(images, 16, shuffle=True)
    return generator.train_vae(vae, loader, settings, alone(folder, every), flip=True), vae


def train_unet(folder: Path, pipeline_folder: Path, steps: int, every: int = 500, **changes):
    """The mean loss at the end, and a denoiser after so many steps on latents whose classes differ."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder")
    prompts = [Prompt.of(tokenizer, "A high-quality image of the {}", name) for name in ("cat", "dog")]
    table = encoder.get_input_embeddings().weight.detach()
    targets = torch.stack([table[prompt.ids[prompt.position]] for prompt in prompts])
    labels = torch.arange(32) % 2
    settings = training(steps=steps, **changes)
    unet = generator.small_unet(settings, 4)
    nets = generator.Denoiser(unet, encoder, prompts, Prompt.plain(tokenizer, ""))
    mean = torch.where(labels.view(-1, 1, 1, 1) == 0, -1.0, 1.0).expand(-1, unet.config.in_channels, 4, 4)
    own = torch.nn.functional.normalize(targets[labels], dim=1)
    loss = generator.train_unet(
        nets, (mean, torch.zeros_like(mean)), labels, targets, own, settings, alone(folder, every)
    )
    return loss, nets


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.fixture
def killed_at(monkeypatch):
    """Makes a training die right after its state of a given step is on disk."""

    def prepare(step: int) -> None:
        write = generator.write_state

        def write_and_die(*args, done: int, **state) -> None:
            write(*args, done=done, **state)
            if done == step:
                monkeypatch.setattr(generator, "write_state", write)
                raise KeyboardInterrupt

        monkeypatch.setattr(generator, "write_state", write_and_die)

    return prepare


def test_training_the_autoencoder_lowers_its_error(tiny, tmp_path):
    images = data.id_loader(tiny.config(), "train").dataset
    start, _ = train_vae(tmp_path / "1", images, 1)
    end, _ = train_vae(tmp_path / "30", images, 30)
    assert end < 0.7 * start


def test_training_the_noise_predictor_lowers_its_loss(pipeline_folder, tmp_path):
    start, _ = train_unet(tmp_path / "1", pipeline_folder, 1)
    end, _ = train_unet(tmp_path / "60", pipeline_folder, 60)
    assert end < 0.7 * start


def test_two_trainings_give_the_same_weights(tiny, pipeline_folder, tmp_path):
    images = data.id_loader(tiny.config(), "train").dataset
    assert same(train_vae(tmp_path / "1", images, 5)[1], train_vae(tmp_path / "2", images, 5)[1])
    first, second = (train_unet(tmp_path / name, pipeline_folder, 8)[1] for name in "34")
    assert same(first, second)


def test_an_autoencoder_whose_training_was_killed_ends_with_the_same_weights(tiny, tmp_path, killed_at):
    images = data.id_loader(tiny.config(), "val").dataset  # a few batches, so that the data come round more than once
    error, whole = train_vae(tmp_path / "whole", images, 20, every=6)
    killed_at(12)
    with pytest.raises(KeyboardInterrupt):
        train_vae(tmp_path / "killed", images, 20, every=6)
    assert train_vae(tmp_path / "killed", images, 20, every=6)[0] == error
    assert same(train_vae(tmp_path / "killed", images, 20, every=6)[1], whole)


@pytest.mark.parametrize("step", [4, 12])
def test_a_denoiser_whose_training_was_killed_ends_with_the_same_weights(pipeline_folder, tmp_path, killed_at, step):
    loss, whole = train_unet(tmp_path / "whole", pipeline_folder, 12, embedding_noise=0.1)
    killed_at(step)
    with pytest.raises(KeyboardInterrupt):
        train_unet(tmp_path / "killed", pipeline_folder, 12, every=4, embedding_noise=0.1)
    again, resumed = train_unet(tmp_path / "killed", pipeline_folder, 12, embedding_noise=0.1)
    assert again == loss and same(resumed, whole)


def test_a_damaged_training_state_is_bad_input_that_names_it(pipeline_folder, tmp_path):
    (tmp_path / "diffusion.state").write_bytes(b"half a file")
    with pytest.raises(InputError, match="diffusion.state: not a readable training state"):
        train_unet(tmp_path, pipeline_folder, 2)


@pytest.mark.parametrize(
    "steps, warm_up", [(20, 0.05), (10, 0.1), (1, 0.1), (2, 0.1), (3, 0.05), (1300, 0.05), (600, 0.1)]
)
def test_the_learning_rate_rises_and_falls_for_any_number_of_steps(steps, warm_up):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 0.1)
    schedule = generator.one_cycle(optimizer, 0.1, steps, warm_up)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.1 + 1e-9 for rate in rates) and rates[-1] < 1e-4
    if steps > 2:
        assert max(rates) == pytest.approx(0.1) and rates.index(max(rates)) <= max(1, warm_up * steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_fraction": 0.0},
        {"embedding_fraction": 1.0, "empty_fraction": 0.0, "embedding_noise": 0.2},
        {"prediction": "v_prediction", "min_snr": 5.0},
        {"unet_channels": [16, 32], "unet_layers": 2, "ema": 0.0, "pooled_text": True},
    ],
)
def test_every_way_to_train_the_denoiser_works(pipeline_folder, tmp_path, changes):
    loss, nets = train_unet(tmp_path, pipeline_folder, 2, **changes)
    assert 0 < loss < 5 and all(weight.isfinite().all() for weight in nets.parameters())


def test_the_saved_weights_are_the_moving_average(pipeline_folder, tmp_path):
    (_, start), (_, slow), (_, last) = (
        train_unet(tmp_path / str(steps), pipeline_folder, steps, ema=ema, lr=0.01)
        for steps, ema in ((1, 0.0), (6, 0.99), (7, 0.0))
    )

    def distance(nets) -> float:
        return sum((a - b).abs().sum() for a, b in zip(nets.parameters(), start.parameters(), strict=True)).item()

    assert distance(slow) < 0.2 * distance(last)


def test_noise_on_the_own_embedding_has_the_given_deviation_and_keeps_its_norm(pipeline_folder, tmp_path, monkeypatch):
    seen = []
    forward = generator.Denoiser.forward

    def spy(self, noisy, t, y, tokens, blank):
        seen.append(tokens)
        return forward(self, noisy, t, y, tokens, blank)

    monkeypatch.setattr(generator.Denoiser, "forward", spy)
    settings = {"embedding_fraction": 1.0, "empty_fraction": 0.0, "batch_size": 256}
    for noise in (0.0, 0.3):
        train_unet(tmp_path / str(noise), pipeline_folder, 1, embedding_noise=noise, **settings)
    clean, noisy = seen
    anchors_seen = clean.unique(dim=0)
    assert len(anchors_seen) == 2 and len(noisy.unique(dim=0)) == 256
    cosines = torch.nn.functional.normalize(noisy, dim=1) @ torch.nn.functional.normalize(anchors_seen, dim=1).T
    expected = 1 / (1 + 0.3**2 * clean.shape[1]) ** 0.5  # of a unit vector and itself with noise, in many dimensions
    assert cosines.max(dim=1).values.mean().item() == pytest.approx(expected, abs=0.05)
    assert noisy.norm(dim=1).min() >= clean.norm(dim=1).min() - 1e-4
    assert noisy.norm(dim=1).max() <= clean.norm(dim=1).max() + 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_paper(prediction):
    noise = generator.noise_schedule(prediction)
    for t in (0, 300, 999):
        signal, spread = noise.alphas_cumprod[t].sqrt().item(), (1 - noise.alphas_cumprod[t]).sqrt().item()
        snr = signal**2 / spread**2
        expected = min(snr, 5) / (snr if prediction == "epsilon" else snr + 1)
        assert generator.snr_weights(noise, torch.tensor([t]), 5.0).item() == pytest.approx(expected, rel=1e-3)


# --------------------------------------------------------------------------------------------- other sizes, many options

OTHER = """{train: small, text_dim: 16, size: 24, pooled_text: true, vae_channels: [8, 16], latent_channels: 4, unet_channels: [16, 32],
vae_steps: 3, steps: 4, batch_size: 8, ema: 0.9, precision: bfloat16, embedding_noise: 0.1, prediction: v_prediction,
min_snr: 5.0, checkpoint_every: 2, samples_every: 2}"""


@pytest.fixture
def cache(tiny, chain, tmp_path) -> Path:
    """A cache that already holds the stages before the generator."""
    for stage in ("text", "anchors", "space"):
        for folder in (tiny.root / "dream").glob(f"{stage}-*"):
            shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def test_size_capacity_and_prediction_are_what_the_config_says_and_samples_are_drawn(tiny, cache):
    layers = ["--dream.generator", OTHER, "--dream.cache_dir", str(cache), "--preprocessor.horizontal_flip", "true"]
    artifact = generator.train(tiny.config(*layers))
    pipe = StableDiffusionPipeline.from_pretrained(artifact.path, safety_checker=None)
    assert pipe.vae_scale_factor == 2 and pipe.unet.config.sample_size == 12
    assert list(pipe.unet.config.block_out_channels) == [16, 32] and pipe.vae.config.latent_channels == 4
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe("A high-quality image of the two", num_inference_steps=1).images[0].size == (24, 24)
    grids = sorted(file.name for file in artifact.path.glob("*.png"))
    assert grids == ["samples-000002.png", "samples-000004.png", "samples.png"]
    assert Image.open(artifact.path / "samples.png").size == (8 * 25 + 1, 6 * 25 + 1)
    assert not list(artifact.path.glob("*.state"))


def test_looking_at_samples_and_saving_the_state_do_not_change_the_weights(tiny, chain, cache):
    looks = ["--dream.generator.samples_every", "10", "--dream.generator.checkpoint_every", "7"]
    artifact = generator.train(tiny.config("--dream.cache_dir", str(cache), *looks))
    assert artifact.hash == chain.generator.identity["generator"]
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        first, second = (
            load_file(Path(path) / f"{part}.safetensors") for path in (chain.generator.path, artifact.path)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_images_that_may_be_mirrored_are_learned_both_ways_round(tiny, cache, monkeypatch):
    learned = []

    def learn(nets, latents, labels, anchors, embeddings, *rest) -> float:
        learned.append((len(latents[0]), len(labels), len(embeddings)))
        return 0.0

    monkeypatch.setattr(generator, "train_unet", learn)
    for flip in ("false", "true"):
        layers = [
            "--dream.generator.vae_steps",
            "1",
            "--dream.space.epochs",
            "1",
            "--dream.cache_dir",
            str(cache / flip),
        ]
        for folder in [*cache.glob("text-*"), *cache.glob("anchors-*"), *cache.glob("space-*")]:
            shutil.copytree(folder, cache / flip / folder.name)
        generator.train(tiny.config("--preprocessor.horizontal_flip", flip, *layers))
    count = len(data.id_loader(tiny.config(), "train").dataset)
    assert learned == [(count,) * 3, (2 * count,) * 3]


def test_a_size_that_the_levels_cannot_halve_is_bad_input(tiny, tmp_path):
    config = tiny.config("--dream.generator.size", "18", "--dream.cache_dir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="dream.generator.size: 18 pixels .* expected a multiple of 4"):
        generator.train(config)
    assert not (tmp_path / "none").exists()


def test_a_pipeline_that_is_given_is_not_trained(tiny, pipeline_folder):
    with pytest.raises(InputError, match="expected {train: small} to train one"):
        generator.train(tiny.config("--dream.generator", str(pipeline_folder)))


@pytest.mark.slow
def test_two_processes_train_one_generator(tiny, cache):
    settings = ["--dream.cache_dir", str(cache), "--dream.generator.steps", "6", "--dream.generator.vae_steps", "4"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "openood_dream.cli", "generator", "--config", tiny.file]
    done = subprocess.run(
        [*command, *settings], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    artifact = generator.train(tiny.config(*settings))
    assert artifact.reused and artifact.manifest["processes"] == 2
    assert StableDiffusionPipeline.from_pretrained(artifact.path, safety_checker=None).unet.dtype == torch.float32


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
