"""Guidance away from ID: its gradients, the clean latents that steps predict, and what becomes of images."""

from __future__ import annotations

import any_families
import diffusers
import families
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from openood_dream.datasets.images import Transform
from openood_dream.dream.guide import clean, gradient_of, kth_distance, push
from openood_dream.dream.guide_settings import GuideSettings
from openood_dream.dream.guided import Guide
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError
from openood_dream.losses import energy

NAMES = ["cat", "red panda", "dog"]
USUAL = {"steps": 6, "size": 32, "save_size": None, "guidance": 3.0}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# ----------------------------------------------------------------------------------------------------------- the maths


def test_scores_are_the_obvious_ones():
    logits, features = torch.randn(4, 6), nn.functional.normalize(torch.randn(4, 8), dim=1)
    bank = nn.functional.normalize(torch.randn(30, 8), dim=1)
    far = kth_distance(features, bank, 3)
    for i in range(4):
        assert energy(logits)[i].item() == pytest.approx(np.log(sum(np.exp(logits[i].tolist()))), rel=1e-5)
        assert far[i].item() == pytest.approx(sorted((features[i] - row).norm().item() for row in bank)[2], rel=1e-4)


def test_gradient_is_that_of_finite_differences():
    weights = torch.randn(5, 12)

    def score(x: torch.Tensor) -> torch.Tensor:
        return -energy(x.flatten(1) @ weights.T.to(x))

    x = torch.randn(2, 3, 2, 2)
    with torch.inference_mode():
        found = gradient_of(score, x)
    step, double = 1e-5, x.double()
    for place in np.ndindex(2, 3, 2, 2):
        ends = [double.clone(), double.clone()]
        ends[0][place] -= step
        ends[1][place] += step
        slope = (score(ends[1]) - score(ends[0])).sum() / (2 * step)
        assert found[place].item() == pytest.approx(slope.item(), abs=1e-4)


def test_push_is_of_the_length_that_is_asked_for():
    z, g = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    g[1] = 0
    moved = push(z, g, 0.1)
    lengths = (moved - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    assert lengths.tolist() == pytest.approx([0.1, 0.0, 0.1], abs=1e-5)
    assert torch.equal(push(z, g, 0.0), z)
    assert torch.allclose(push(z[2:], g[2:], 0.1), moved[2:], atol=1e-6)  # by itself as in a batch


SCHEDULERS = {
    "dpmsolver++": lambda kind: diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=kind),
    "ddim": lambda kind: diffusers.DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False),
    "pndm": lambda kind: diffusers.PNDMScheduler(**BETAS, prediction_type=kind, skip_prk_steps=True),
    "euler": lambda kind: diffusers.EulerDiscreteScheduler(**BETAS, prediction_type=kind),
    "euler_ancestral": lambda kind: diffusers.EulerAncestralDiscreteScheduler(**BETAS, prediction_type=kind),
    "lcm": lambda kind: diffusers.LCMScheduler(**BETAS, prediction_type=kind),
    "flow": lambda kind: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_clean_latents_of_a_network_that_knows_them(name, kind):
    scheduler, x, noise = SCHEDULERS[name](kind), torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    scheduler.set_timesteps(8)
    for number, step in enumerate(scheduler.timesteps[:5]):
        if name == "flow":
            sigma = scheduler.sigmas[number]
            sample, output = (1 - sigma) * x + sigma * noise, noise - x
        else:
            plain = diffusers.DDPMScheduler(**BETAS)
            if "euler" in name:
                sigma = scheduler.sigmas[number]
                sample, signal = x + sigma * noise, 1 / (sigma**2 + 1) ** 0.5
            else:
                signal = plain.alphas_cumprod[int(step)] ** 0.5
                sample = signal * x + (1 - signal**2) ** 0.5 * noise
            output = noise if kind == "epsilon" else signal * noise - (1 - signal**2) ** 0.5 * x
        scheduler.step(output, step, sample)
        assert torch.allclose(clean(scheduler, output, step, sample), x, atol=2e-3), (name, kind, number)


# ------------------------------------------------------------------------------------------------------ with a pipeline


class Net(nn.Module):
    """A classifier whose features are means of colours."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(48, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return 5 * self.head(features), nn.functional.normalize(features, dim=1)


def guide(**changes) -> Guide:
    torch.manual_seed(0)
    bank = nn.functional.normalize(torch.randn(20, 48), dim=1)
    return Guide(GuideSettings(**changes), Net().requires_grad_(False), bank, Transform(32, 32, "cifar10"))


@pytest.fixture(scope="module", params=["sd3", "sd1"])
def drawn(request, tmp_path_factory):
    """A pipeline, and a function that draws with a guide."""
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    if request.param == "sd1":
        families.save(folder, "sd1", NAMES)
    else:
        any_families.save(folder, request.param)
    settings = SynthesisSettings(**USUAL)
    imaginer = Imaginer(load_pipeline(Source(str(folder), None, None), settings, "cpu"), NAMES, settings)
    labels = torch.tensor([0, 1, 2])

    def draw(some: slice = slice(3), **changes) -> torch.Tensor:
        given = guide(**changes) if changes else None
        return imaginer._draw(
            labels[some], imaginer.placeholder.anchors[labels[some]], [1, 2, 3][some], "pt", None, given
        )

    return draw


@pytest.mark.parametrize("which", [0, 1])
def test_the_score_rises(drawn, which):
    changes = {"image": 0.5} if which == 0 else {"feature": 0.5}
    plain, guided = drawn(), drawn(**changes)
    judge = guide(image=1.0, feature=1.0)
    before, after = (judge.scores(images * 2 - 1)[which] for images in (plain, guided))
    assert after.mean() > before.mean()


def test_no_weight_is_the_unguided_image_bit_for_bit(drawn):
    assert torch.equal(drawn(image=0.0, feature=0.0), drawn())


def test_image_does_not_depend_on_its_batch(drawn):
    together = drawn(image=0.3)
    for i in range(3):
        assert (drawn(slice(i, i + 1), image=0.3)[0] - together[i]).abs().max() < 0.01


def test_no_steps_outside_of_the_window(drawn):
    assert torch.equal(drawn(image=0.5, begin=0.0, end=0.05), drawn())


@pytest.mark.parametrize(
    "family, line",
    [("pixart_sigma", "PixArtSigmaPipeline tells nobody of its steps"), ("flux", "FluxPipeline packs its latents")],
)
def test_pipelines_that_cannot_be_guided(tmp_path, family, line):
    settings = SynthesisSettings(**USUAL, guide={"feature": 0.1})
    source = Source(str(any_families.save(tmp_path / "pipeline", family)), None, None)
    with pytest.raises(InputError, match=rf"guide\.image: {line}"):
        Imaginer(load_pipeline(source, settings, "cpu"), NAMES, settings)


@pytest.mark.parametrize("text", ["{begin: 0.5, end: 0.5}", "{image: -1}", "{k: 0}"])
def test_bad_settings(tiny, text):
    with pytest.raises(InputError, match=r"dream\.synthesis\.guide\.(begin|image|k): expected"):
        _ = tiny.config("--dream.synthesis.guide", text).dream


# ----------------------------------------------------------------------------------------------------------- the stage


def test_k_beyond_the_features(tiny, dream):
    rows = len(load_space(dream.space)["rows"])
    with pytest.raises(InputError, match=rf"dream\.synthesis\.guide\.k: expected at most {rows} .*, got {rows + 1}"):
        _ = tiny.config("--dream.synthesis.guide", f"{{feature: 0.2, k: {rows + 1}}}").imagination.images


def test_set_is_guided_by_the_judge_and_drawn_again_the_same(tiny, dream):
    words = ["--dream.synthesis.guide", "{image: 0.2, feature: 0.2}"]
    guided = tiny.config(*words).imagination.images
    assert not guided.reused and guided.hash != dream.images.hash
    assert tiny.config(*words).imagination.images.reused
    assert tiny.config("--dream.synthesis.guide", "{k: 3}").imagination.images.hash == dream.images.hash  # of no weight
    rows = [pd.read_parquet(one.path / "images.parquet") for one in (dream.images, guided)]
    first = rows[0]["file"][0]
    same, other = ((one.path / first).read_bytes() for one in (dream.images, guided))
    assert same != other and list(rows[0]["seed"]) == list(rows[1]["seed"])
    for path in [guided.path / name for name in ("manifest.json", "images.parquet", "imglist.txt", first)]:
        path.unlink()
    for path in guided.path.glob("shards/*"):
        path.unlink()
    again = tiny.config(*words).imagination.images
    assert (again.path / first).read_bytes() == other
