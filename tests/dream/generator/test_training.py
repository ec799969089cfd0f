"""Autoencoder and denoiser learn, reproducibly, also where the training was killed in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import normalize
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.datasets.images import ImageList, loader
from openood_dream.dream.generator import training
from openood_dream.dream.generator.models import Denoiser, small_unet, small_vae
from openood_dream.dream.generator.training import Plan, Samples, Session, attention, one_cycle, unit_range
from openood_dream.dream.prompts import class_prompts
from openood_dream.dream.settings import GeneratorTraining, SynthesisSettings
from openood_dream.errors import InputError
from openood_dream.parallel.processes import Processes


def settings(**changes) -> GeneratorTraining:
    return GeneratorTraining(
        **{"train": "small", "batch_size": 16, "steps": 1, "vae_steps": 1, "text_dim": 16} | changes
    )


def alone(folder: Path, every: int = 500) -> Session:
    return Session(Processes(torch.device("cpu")), torch.float32, folder, every)


@pytest.fixture(scope="module")
def train(tiny) -> ImageList:
    return tiny.config().data.images("dataset", "train")


@pytest.fixture(scope="module")
def val(tiny) -> ImageList:
    return tiny.config().data.images("dataset", "val")


def train_vae(folder: Path, images: ImageList, steps: int, every: int = 500) -> tuple[float, AutoencoderKL]:
    """An autoencoder after so many steps, and its error at the end."""
    torch.manual_seed(0)
    given = settings(vae_steps=steps, vae_channels=[8, 16])
    vae = small_vae(given, 16)
    return training.train_vae(vae, loader(images, 16, shuffle=True), given, alone(folder, every), flip=True), vae


def train_denoiser(folder: Path, pipeline_folder: Path, steps: int, every: int = 500, **changes):
    """The mean loss at the end, and a denoiser after so many steps on latents whose classes differ."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder")
    prompts = class_prompts(tokenizer, ("cat", "dog"), SynthesisSettings())
    anchors = encoder.get_input_embeddings().weight.detach()[prompts.ids[prompts.named]]
    labels = torch.arange(32) % 2
    given = settings(steps=steps, **changes)
    unet = small_unet(given, 4)
    nets = Denoiser(unet, encoder, prompts)
    mean = torch.where(labels.view(-1, 1, 1, 1) == 0, -1.0, 1.0).expand(-1, unet.config.in_channels, 4, 4)
    samples = Samples(mean, torch.zeros_like(mean), labels, normalize(anchors[labels], dim=1))
    return training.train_denoiser(nets, samples, anchors, given, alone(folder, every)), nets


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.fixture
def killed_at(monkeypatch):
    """Makes a training die right after its state of a given step is on disk."""

    def prepare(step: int) -> None:
        write = training.write_state

        def write_and_die(path, processes, parts, batches=None) -> None:
            write(path, processes, parts, batches)
            if parts["done"] == step:
                monkeypatch.setattr(training, "write_state", write)
                raise KeyboardInterrupt

        monkeypatch.setattr(training, "write_state", write_and_die)

    return prepare


# ------------------------------------------------------------------------------------------------------------ learning


def test_autoencoder_learns(train, tmp_path):
    start, _ = train_vae(tmp_path / "1", train, 1)
    end, _ = train_vae(tmp_path / "30", train, 30)
    assert end < 0.7 * start


def test_denoiser_learns(pipeline_folder, tmp_path):
    start, _ = train_denoiser(tmp_path / "1", pipeline_folder, 1)
    end, _ = train_denoiser(tmp_path / "60", pipeline_folder, 60)
    assert end < 0.7 * start


def test_two_trainings_give_the_same_weights(train, pipeline_folder, tmp_path):
    assert same(train_vae(tmp_path / "1", train, 5)[1], train_vae(tmp_path / "2", train, 5)[1])
    first, second = (train_denoiser(tmp_path / name, pipeline_folder, 8)[1] for name in "34")
    assert same(first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_fraction": 0.0},
        {"embedding_fraction": 0.0, "empty_fraction": 1.0},
        {"embedding_fraction": 1.0, "empty_fraction": 0.0, "embedding_noise": 0.2},
        {"prediction": "v_prediction", "min_snr": 5.0},
        {"unet_channels": [16, 32], "unet_layers": 2, "ema": 0.0, "pooled_text": True},
    ],
)
def test_ways_to_train_the_denoiser(pipeline_folder, tmp_path, changes):
    loss, nets = train_denoiser(tmp_path, pipeline_folder, 2, **changes)
    assert 0 < loss < 5 and all(weight.isfinite().all() for weight in nets.parameters())


def test_weights_are_the_moving_average(pipeline_folder, tmp_path):
    (_, start), (_, slow), (_, last) = (
        train_denoiser(tmp_path / str(steps), pipeline_folder, steps, ema=ema, lr=0.01)
        for steps, ema in ((1, 0.0), (6, 0.99), (7, 0.0))
    )

    def distance(nets) -> float:
        return sum((a - b).abs().sum() for a, b in zip(nets.parameters(), start.parameters(), strict=True)).item()

    assert distance(slow) < 0.2 * distance(last)


def test_embedding_noise_has_its_deviation_and_keeps_the_norm(pipeline_folder, tmp_path, monkeypatch):
    seen = []
    forward = Denoiser.forward

    def spy(self, noisy, steps, labels, moves, blank):
        anchors = self.text.get_input_embeddings().weight[self.ids[self.named]]
        seen.append(anchors[labels] + moves)
        return forward(self, noisy, steps, labels, moves, blank)

    monkeypatch.setattr(Denoiser, "forward", spy)
    changes = {"embedding_fraction": 1.0, "empty_fraction": 0.0, "batch_size": 256}
    for noise in (0.0, 0.3):
        train_denoiser(tmp_path / str(noise), pipeline_folder, 1, embedding_noise=noise, **changes)
    clean, noisy = seen
    anchors_seen = clean.round(decimals=4).unique(dim=0)
    assert len(anchors_seen) == 2 and len(noisy.unique(dim=0)) == 256
    cosines = normalize(noisy, dim=1) @ normalize(anchors_seen, dim=1).T
    expected = 1 / (1 + 0.3**2 * clean.shape[1]) ** 0.5  # of a unit vector and itself with noise, in many dimensions
    assert cosines.max(dim=1).values.mean().item() == pytest.approx(expected, abs=0.05)
    assert noisy.norm(dim=1).min() >= clean.norm(dim=1).min() - 1e-4
    assert noisy.norm(dim=1).max() <= clean.norm(dim=1).max() + 1e-4


@pytest.mark.parametrize(
    "steps, warm_up", [(20, 0.05), (10, 0.1), (1, 0.1), (2, 0.1), (3, 0.05), (1300, 0.05), (600, 0.1)]
)
def test_learning_rate_rises_and_falls(steps, warm_up):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 0.1)
    schedule = one_cycle(optimizer, Plan(steps, 0.1, warm_up))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.1 + 1e-9 for rate in rates) and rates[-1] < 1e-4
    if steps > 2:
        assert max(rates) == pytest.approx(0.1) and rates.index(max(rates)) <= max(1, warm_up * steps)


def test_images_are_between_minus_one_and_one_whatever_the_normalisation(tiny):
    ranges = []
    for kind in ("digits", "cifar10"):
        images = tiny.config("--dataset.normalization_type", kind).data.images("dataset", "val")
        ranges.append(unit_range(images.__getitems__(range(20))["data"], images.transform))
    assert torch.allclose(ranges[0], ranges[1], atol=1e-5)
    assert ranges[0].min() >= -1 - 1e-5 and ranges[0].max() <= 1 + 1e-5 and ranges[0].max() > 0.9


# ------------------------------------------------------------------------------------------------------------ resuming


def test_killed_autoencoder_ends_with_the_same_weights(val, tmp_path, killed_at):
    # validation images are a few batches, so that the data come round more than once
    error, whole = train_vae(tmp_path / "whole", val, 20, every=6)
    killed_at(12)
    with pytest.raises(KeyboardInterrupt):
        train_vae(tmp_path / "killed", val, 20, every=6)
    assert train_vae(tmp_path / "killed", val, 20, every=6)[0] == error
    assert same(train_vae(tmp_path / "killed", val, 20, every=6)[1], whole)


@pytest.mark.parametrize("step", [4, 12])
def test_killed_denoiser_ends_with_the_same_weights(pipeline_folder, tmp_path, killed_at, step):
    loss, whole = train_denoiser(tmp_path / "whole", pipeline_folder, 12, embedding_noise=0.1)
    killed_at(step)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(tmp_path / "killed", pipeline_folder, 12, every=4, embedding_noise=0.1)
    again, resumed = train_denoiser(tmp_path / "killed", pipeline_folder, 12, embedding_noise=0.1)
    assert again == loss and same(resumed, whole)


def test_damaged_state(pipeline_folder, tmp_path):
    (tmp_path / "diffusion.state").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"diffusion\.state: .* delete it to start anew"):
        train_denoiser(tmp_path, pipeline_folder, 2)


def test_batch_that_processes_cannot_share(tmp_path):
    session = alone(tmp_path)
    session.processes.count = 3
    assert session.part_of(settings(batch_size=48), "batch_size") == 16
    with pytest.raises(InputError, match=r"dream\.generator\.vae_batch_size: 16 .* 3 processes"):
        session.part_of(settings(), "vae_batch_size")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_while_training_gives_the_same(dtype):
    """Another way of computing it, where that is faster, with the same values and gradients as torch's own choice."""
    q, k, v = (torch.randn(2, 4, 30, 16, dtype=dtype, requires_grad=True) for _ in range(3))

    def found() -> list[torch.Tensor]:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]

    with attention(torch.device("cpu"), dtype):
        assert torch.backends.cuda.flash_sdp_enabled() is (dtype is torch.float32)
        ours = found()
    assert torch.backends.cuda.flash_sdp_enabled()
    torch.testing.assert_close(ours, found(), rtol=5e-2, atol=5e-2 if dtype is torch.bfloat16 else 1e-5)
