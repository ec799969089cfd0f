"""How far each hot path is from what the machine cannot do without: `make bench`, or `pytest benchmarks/bench_limits.py`.

The reference of each is the one part of the work that no code can avoid: a matrix product, the UNet's passes, a bare step
of PyTorch, a pass of the network, a pass of the encoder. `cpu` beside a ratio is how many times its processor time ours
takes, which other work on the machine hardly changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_evaluate import Job, by_us, one_pass
from bench_frl import DEVICE, frl, images, network
from bench_imagine import SMALL, job, small
from bench_outliers import SETTINGS, SPREADS, a_round
from bench_trainers import BATCH, LIMITS, Loader, make

from openood_dream.sampling.knn import sample_round


@pytest.fixture
def limit(benchmark, against) -> Callable[..., tuple[Any, Any]]:
    """Compares with a limit as `against` does, and records the ratio of processor times besides."""

    def measure(ours: Callable[[], Any], reference: Callable[[], Any], words: str, **options: Any) -> tuple[Any, Any]:
        spent: dict[str, list[float]] = {"ours": [], "reference": []}

        def clocked(name: str, function: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                start = time.process_time()
                result = function()
                spent[name].append(time.process_time() - start)
                return result

            return call

        found = against(clocked("ours", ours), clocked("reference", reference), words, **options)
        if benchmark.stats is not None:
            benchmark.extra_info["cpu"] = min(spent["ours"]) / min(spent["reference"])
        return found

    return measure


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", SETTINGS)
def test_sampling(limit, name, spread):
    """A round, against the product of its draws with the class."""
    setting = SETTINGS[name]
    z, boundary, draws = a_round(setting, spread)
    (rows, _, _), product = limit(
        lambda: sample_round(z, boundary, setting.k, setting.sigma, draws, setting.keep),
        lambda: draws @ z.T,
        "the product of draws and embeddings",
        wanted=1 / 1.8,
        rounds=20,
        reference_rounds=20,
    )
    assert rows.shape == (len(boundary), setting.keep) and product.shape == (len(draws), len(z))


def test_imagining(limit, tmp_path):
    """The small pipeline from embeddings to files, against the same passes of its UNet."""
    drawn = job(tmp_path, small, SMALL)
    unet, calls = drawn.work.imaginer.pipeline.unet, []
    hook = unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    drawn.draw()
    hook.remove()

    @torch.inference_mode()
    def passes() -> list[Any]:
        return [unet(*args, **kwargs) for args, kwargs in calls]

    limit(drawn.draw, passes, "its UNet alone", wanted=1 / 1.1, rounds=5, reference_rounds=5)
    assert len(drawn.ours()) == SMALL.images


@pytest.mark.parametrize("name", ["base", *LIMITS])
def test_training_step(limit, name):
    """A step, against forward pass, cross-entropy, backward pass and SGD, written out, on as many images."""
    torch.manual_seed(0)
    ours = make(name, Loader(BATCH))
    batches = next(iter(ours.batches()))
    (batch,) = Loader(sum(len(batch["label"]) for batch in batches))
    net = make("base", Loader(1)).net
    data, labels = batch["data"].to(DEVICE, memory_format=torch.channels_last), batch["label"].to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        loss = F.cross_entropy(net(data), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    limit(lambda: ours.step(*batches), step, "a bare step of PyTorch", rounds=3)


def test_evaluation(limit, tmp_path):
    """Twelve postprocessors on seven sets with their tables, against one pass of the network over the same images."""
    small_job = Job(tmp_path)
    rounds = {"rounds": 1, "reference_rounds": 1, "warmup": False}
    limit(lambda: by_us(small_job), lambda: one_pass(small_job), "one pass of the network", wanted=1 / 1.5, **rounds)


@pytest.mark.parametrize("size, count", [("small", 16), ("paper", 4)])
def test_frl(limit, size, count):
    """FRL's score, against one pass of the encoder: the twenty passes of the decoder are what the bound asks for."""
    net, x = network(size), images(count)

    @torch.inference_mode()
    def encoded() -> torch.Tensor:
        return net.model.posterior(net.with_frequency(x.to(DEVICE))).mean

    scores, latents = limit(lambda: frl(net, x), encoded, "one pass of the encoder", rounds=3)
    assert len(scores) == len(latents) == count


@pytest.mark.parametrize("size, count", [("small", 16), ("paper", 4)])
def test_frl_against_its_products(limit, size, count):
    """FRL's score, against the matrix products of its twenty decoders' last layer, which give a thousand logits a pixel."""
    net, x = network(size), images(count)
    model = net.model
    with torch.inference_mode():
        hidden = model.decoder(torch.randn(1, model.latent, 1, 1, device=DEVICE))
        patches = torch.randn(hidden.shape[2] * hidden.shape[3], 4 * hidden.shape[1], device=DEVICE)
        weight = model._product(0, 0)
    logits = patches.new_empty(len(patches), weight.shape[1])

    @torch.inference_mode()
    def products() -> None:
        for _ in range(4 * model.samples * count):
            torch.mm(patches, weight, out=logits)

    limit(lambda: frl(net, x), products, "the products of the last layer", rounds=3)
