"""Scores of generative models: what they are made of, and that neither batches nor repetition change them."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_generative import SIZES, network
from torch.utils.data import DataLoader
from torchvision.io import encode_png

from openood_dream.errors import InputError
from openood_dream.postprocessors import likelihood as scores
from openood_dream.postprocessors.base import Images
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.postprocessors.settings import PostprocessorSettings

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth, constant and noisy images, (9, 1, 8, 8)."""
    ramp = torch.arange(64).view(1, 1, 8, 8).repeat(3, 1, 1, 1) * torch.tensor([1, 2, 3]).view(3, 1, 1, 1)
    flat = torch.tensor([0, 100, 255]).view(3, 1, 1, 1).expand(-1, -1, 8, 8)
    return torch.cat([ramp, flat, torch.randint(0, 256, (3, 1, 8, 8))]).to(torch.uint8)


def detector(name: str, tmp_path, **args) -> scores.LikelihoodScore:
    settings = PostprocessorSettings(name=name, postprocessor_args={"cache_dir": str(tmp_path), **args})
    return POSTPROCESSORS[name](POSTPROCESSORS[name].arguments(settings))


def test_code_length_is_that_of_a_png():
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    images[10:] = images[10:, :, :1, :1]
    lengths = scores.code_lengths(images)
    for image, bits in zip(images, lengths):
        encoded = encode_png(image, 9).numpy().tobytes()
        assert bits == 8 * len(encoded)
        with Image.open(io.BytesIO(encoded)) as decoded:
            assert np.array_equal(np.asarray(decoded), image.permute(1, 2, 0).numpy())
    assert lengths[10:].max() < 2000 < 24000 < lengths[:10].min()  # noise cannot be compressed below its 24576 bits


def test_numbers_are_computed_once(images, tmp_path, monkeypatch):
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
def test_likelihood_in_any_batch(name, frequency, images, monkeypatch):
    net = network(name, frequency=frequency)
    together = scores.log_likelihood(net, images, CPU)
    alone = torch.cat([scores.log_likelihood(net, image[None], CPU) for image in images])
    monkeypatch.setattr(scores, "BATCH", 4)
    assert torch.allclose(together, alone, rtol=1e-5, atol=0.01)
    assert torch.allclose(together, scores.log_likelihood(net, images, CPU), rtol=1e-5, atol=0.01)
    assert (together < 0).all() and together.dtype == torch.float64


def test_frl_formula(images, tmp_path):
    net = network("pixelcnnpp", frequency=True)
    expected = scores.log_likelihood(net, images, CPU) + scores.code_lengths(images)
    assert torch.allclose(detector("frl", tmp_path).score(net, images, CPU), expected)


@pytest.mark.parametrize("name", ["frl", "input_complexity"])
def test_nats_beside_bits_as_the_public_code_has_them(images, tmp_path, name):
    net = network("vae", frequency=name == "frl")
    bits = scores.log_likelihood(net, images, CPU)
    found = detector(name, tmp_path, units="nats").score(net, images, CPU)
    assert torch.allclose(found, bits * math.log(2) + scores.code_lengths(images))
    assert torch.allclose(detector(name, tmp_path).score(net, images, CPU), bits + scores.code_lengths(images))


def test_frl_needs_the_channel(images, tmp_path):
    with pytest.raises(InputError, match="^postprocessor.name: frl .*trainer.frequency"):
        detector("frl", tmp_path).score(network("vae"), images, CPU)


def test_a_loaders_images_have_scores_and_no_classes(tmp_path):
    rows = [{"data": torch.rand(3, 8, 8) * 2 - 1, "label": label} for label in range(5)]
    loader, net = DataLoader(rows, batch_size=2), network("vae")
    images, labels = scores.uint8_images(net, loader, CPU)
    assert torch.equal(images, net.image(torch.stack([row["data"] for row in rows]))) and labels.tolist() == [*range(5)]
    given = Images(net, loader, CPU)
    conf = detector("likelihood", tmp_path).confidence(given)
    assert torch.equal(conf, scores.log_likelihood(net, images, CPU))
