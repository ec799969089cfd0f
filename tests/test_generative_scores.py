"""Scores of generative models: what they are made of, and that neither batches nor repetition change them."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_generative_network import SIZES, network
from torch.distributions import Normal

from openood_dream import pipelines
from openood_dream.config import Config, InputError
from openood_dream.generative import scores
from openood_dream.generative.vae import VAE
from openood_dream.networks import get_network
from openood_dream.postprocessors import POSTPROCESSORS, find_postprocessor
from openood_dream.trainers.loop import save_weights

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth, constant and noisy images, (9, 1, 8, 8)."""
    ramp = torch.arange(64).view(1, 1, 8, 8).repeat(3, 1, 1, 1) * torch.tensor([1, 2, 3]).view(3, 1, 1, 1)
    flat = torch.tensor([0, 100, 255]).view(3, 1, 1, 1).expand(-1, -1, 8, 8)
    return torch.cat([ramp, flat, torch.randint(0, 256, (3, 1, 8, 8))]).to(torch.uint8)


def detector(name: str, tmp_path, **args) -> scores.LikelihoodScore:
    section = {"name": name, "postprocessor_args": {"cache_dir": str(tmp_path), **args}}
    return POSTPROCESSORS[name](POSTPROCESSORS[name].arguments(Config({"postprocessor": section})))


def test_a_code_length_is_the_bits_of_a_png_of_the_image():
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    images[10:] = images[10:, :, :1, :1]
    lengths = scores.code_lengths(images)
    for image, bits in zip(images, lengths):
        encoded = scores.encode_png(image, 9).numpy().tobytes()
        assert bits == 8 * len(encoded)
        with Image.open(io.BytesIO(encoded)) as decoded:
            assert np.array_equal(np.asarray(decoded), image.permute(1, 2, 0).numpy())
    assert lengths[10:].max() < 2000 < 24000 < lengths[:10].min()  # noise cannot be compressed below its 24576 bits


def test_code_lengths_and_likelihoods_are_computed_once_for_a_data_set_and_weights(images, tmp_path, monkeypatch):
    counts = {"lengths": 0, "likelihoods": 0}
    lengths, likelihood = scores.code_lengths, scores.log_likelihood

    def counted(kind: str, function):
        def call(*args):
            counts[kind] += 1
            return function(*args)

        return call

    monkeypatch.setattr(scores, "code_lengths", counted("lengths", lengths))
    monkeypatch.setattr(scores, "log_likelihood", counted("likelihoods", likelihood))
    net, first = network("glow"), None
    for name in ("likelihood", "input_complexity", "input_complexity"):
        found = detector(name, tmp_path).score(net, images, CPU)
        first = found if first is None else first
    assert counts == {"lengths": 1, "likelihoods": 1}
    assert torch.allclose(found, first + lengths(images))
    detector("input_complexity", tmp_path).score(net, images[:5], CPU)
    assert counts == {"lengths": 2, "likelihoods": 2}
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    detector("input_complexity", tmp_path).score(net, images, CPU)
    assert counts == {"lengths": 2, "likelihoods": 3}


@pytest.mark.parametrize("frequency", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_an_images_likelihood_is_the_same_alone_and_in_any_batch(name, frequency, images, monkeypatch):
    net = network(name, frequency=frequency)
    together = scores.log_likelihood(net, images, CPU)
    alone = torch.cat([scores.log_likelihood(net, image[None], CPU) for image in images])
    monkeypatch.setattr(scores, "BATCH", 4)
    assert torch.allclose(together, alone, rtol=1e-5, atol=0.01)
    assert torch.allclose(together, scores.log_likelihood(net, images, CPU), rtol=1e-5, atol=0.01)
    assert (together < 0).all() and together.dtype == torch.float64


def test_frl_adds_the_code_length_of_the_image_alone(images, tmp_path):
    net = network("pixelcnnpp", frequency=True)
    expected = scores.log_likelihood(net, images, CPU) + scores.code_lengths(images)
    assert torch.allclose(detector("frl", tmp_path).score(net, images, CPU), expected)


def test_frl_refuses_a_network_without_the_channel(images, tmp_path):
    with pytest.raises(InputError, match="frl needs a network trained with trainer.frequency true"):
        detector("frl", tmp_path).score(network("vae"), images, CPU)


# ------------------------------------------------------------------------------------------------- likelihood regret


@pytest.fixture
def vae() -> VAE:
    """A VAE whose encoder is far from the best posterior."""
    model = network("vae").model.eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def slow_regret(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> float:
    """The regret of one image (1, C, S, S), written with torch's own backward."""
    with torch.no_grad():
        start = model.posterior(x)
    mean = start.mean.clone().requires_grad_()
    log_variance = (2 * start.stddev.log()).clone().requires_grad_()
    optimizer, generator = torch.optim.Adam([mean, log_variance], lr), torch.Generator().manual_seed(1)
    for _ in range(steps):
        std = (log_variance / 2).exp()
        z = mean + std * torch.randn(1, model.latent, generator=generator)
        divergence = 0.5 * (mean**2 + std**2 - 1 - log_variance).sum()
        loss = divergence - model.likelihood(x, z).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        best = Normal(mean, (log_variance / 2).exp())
        return (model.importance_bound(x, best, noise) - model.importance_bound(x, start, noise)).item()


def test_the_regret_of_many_images_together_is_that_of_each_alone(vae, images):
    noise = torch.randn(10, vae.latent)
    together = scores.regret(vae, images, noise, 15, 0.05)
    for image, found in zip(images, together):
        assert found.item() == pytest.approx(slow_regret(vae, image[None], noise, 15, 0.05), rel=0.01, abs=0.5)


def test_without_a_step_there_is_no_regret(vae, images):
    assert scores.regret(vae, images, torch.randn(10, vae.latent), 0, 0.05).abs().max() < 0.01


def test_the_regret_needs_a_vae(images, tmp_path):
    with pytest.raises(InputError, match="likelihood_regret needs network.name vae"):
        detector("likelihood_regret", tmp_path).score(network("glow"), images, CPU)


# ----------------------------------------------------------------------------------------------------- in the pipelines


@pytest.mark.parametrize(
    "postprocessor, net, words", [("frl", "timm:resnet10t", "generative networks"), ("msp", "vae", "classifiers")]
)
def test_detectors_and_networks_of_different_kinds_are_refused(postprocessor, net, words):
    with pytest.raises(InputError, match=f"{postprocessor} scores {words}, and network.name is '{net}'"):
        find_postprocessor(Config(postprocessor={"name": postprocessor}, network={"name": net}))


METHODS = """
benchmark:
  seeds: [0]
  postprocessors: [likelihood, input_complexity]
  methods:
    vae: [networks/vae_small.yml, pipelines/train/frl.yml, {plain}]
    vae_frl: [networks/vae_small.yml, pipelines/train/frl.yml, {plain}, benchmarks/methods/frl.yml]
"""
PLAIN = """
trainer: {frequency: false}
network: {latent: 4, width: 4, channels: 1}
optimizer: {lr: 0.001, num_epochs: 1}
"""


def test_a_benchmark_trains_and_scores_generative_networks(tiny, tmp_path):
    (tmp_path / "plain.yml").write_text(PLAIN)
    (tmp_path / "methods.yml").write_text(METHODS.format(plain=json.dumps(str(tmp_path / "plain.yml"))))
    layers = [tiny.file, str(tmp_path / "methods.yml")]
    root = ["--root", str(tmp_path / "out")]
    pipelines.benchmark(layers, root, methods=["vae", "vae_frl"])
    rows = {}
    for path in sorted((tmp_path / "out").rglob("ood.csv")):
        with open(path, newline="") as file:
            rows["/".join(path.parts[-4:-1])] = {row["dataset"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"vae/s0/likelihood", "vae/s0/input_complexity", "vae_frl/s0/frl"}
    assert all(row["ACC"] == "-" for run in rows.values() for row in run.values())
    assert 0 <= float(rows["vae_frl/s0/frl"]["nearood"]["AUROC"]) <= 100
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "vae_frl" in table and "input_complexity" in table


def test_a_checkpoint_is_scored_by_hand(tiny, tmp_path):
    config = tiny.config(
        *["--network.latent", "4", "--network.width", "4", "--network.channels", "1"],
        *["--output_dir", str(tmp_path), "--exp_name", "scored", "--network.checkpoint", str(tmp_path / "a.ckpt")],
        layers=["networks/vae_small.yml", "postprocessors/frl.yml"],
    )
    save_weights(get_network(config), tmp_path / "a.ckpt")
    out = pipelines.test(config)
    assert (out / "ood.csv").exists() and (tmp_path / "likelihoods").is_dir()
    config.network.frequency = False
    with pytest.raises(InputError, match="with the high-frequency channel"):
        pipelines.test(config)


def test_regrets_are_computed_once_for_images_weights_and_steps(images, tmp_path, monkeypatch):
    net, calls = network("vae"), []
    monkeypatch.setattr(
        scores, "regret", lambda model, x, noise, steps, lr: calls.append(steps) or x.double().mean((1, 2, 3))
    )
    for steps in (2, 2, 3):
        found = detector("likelihood_regret", tmp_path, steps=steps).score(net, images, CPU)
    assert calls == [2, 3] and found.shape == (len(images),)
