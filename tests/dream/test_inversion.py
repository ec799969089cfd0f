"""Diffusion embeddings: the public procedure as the slow twin, every family of pipelines, and the stage."""

from __future__ import annotations

from pathlib import Path

import any_families
import diffusers
import families
import pytest
import torch
import torch.nn.functional as F
from helpers import Tiny
from safetensors.torch import load_file, save_file

from openood_dream.dream import inversion
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.inversion import LEVELS, Inverter, encoded, noised, predicted
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError

NAMES = ["cat", "red panda", "dog"]
TEMPLATE = "A high-quality image of the {}"
SETTINGS = SynthesisSettings(steps=2, size=32, save_size=None, guidance=3.0)
REFUSED = ("flux2_klein", "aura_flow")


def imaginer_of(folder: Path, **changes) -> Imaginer:
    settings = SETTINGS.model_copy(update=changes)
    return Imaginer(load_pipeline(Source(str(folder), None, None), settings, "cpu"), NAMES, settings)


@pytest.fixture(scope="module", params=["sd1", "sdxl", *(one for one in any_families.BUILDERS if one not in REFUSED)])
def folder(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "pipeline"
    if request.param in ("sd1", "sdxl"):
        return families.save(place, request.param, NAMES)
    return any_families.save(place, request.param)


@pytest.fixture
def imaginer(folder) -> Imaginer:
    return imaginer_of(folder)


def inputs(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 3, 32, 32) * 2 - 1, torch.arange(count) % 3


# ------------------------------------------------------------------------------------------------------- every family


def test_latents_are_those_that_the_pipeline_decodes(imaginer):
    """Its own call, given them as what its last step leaves, draws what the autoencoder makes of the images."""
    x, labels = inputs()
    pipe, vae = imaginer.pipeline, imaginer.pipeline.vae
    with torch.no_grad():
        deep = hasattr(vae.config, "z_dim")
        z = vae.encode(x.unsqueeze(2) if deep else x)
        z = z.latent_dist.mean if hasattr(z, "latent_dist") else z.latent
        again = vae.decode(z, return_dict=False)[0]
    again = (again[:, :, 0] if deep else again).clamp(-1, 1) / 2 + 0.5
    latents = encoded(imaginer, x)
    step = type(pipe.scheduler).step
    pipe.scheduler.step = lambda output, t, sample, *args, **options: (latents.to(sample.dtype),)
    try:
        drawn = imaginer._draw(labels, None, [1, 2], "pt")
    finally:
        del pipe.scheduler.step
    assert pipe.scheduler.step.__func__ is step
    assert torch.allclose(drawn, again, atol=1e-3)


def test_prediction_is_that_of_the_pipeline(folder):
    """At a time step of its own schedule, where all samples have the same one."""
    labels, seen = torch.tensor([0, 1]), []
    plain = imaginer_of(folder, guidance=0.0)
    pipe = plain.pipeline
    step = pipe.scheduler.step

    def noted(output, t, sample, *args, **options):
        seen.append((output, t, sample))
        return step(output, t, sample, *args, **options)

    pipe.scheduler.step = noted
    plain._draw(labels, None, [1, 2], "latent")
    output, t, sample = seen[0]
    again = imaginer_of(folder)  # what was drawn with keeps tensors that no gradient passes
    noisy = inversion.Noisy(sample.float().clone(), t.expand(2), sample)
    found = predicted(again, labels, again.placeholder.anchors[labels], noisy)
    assert torch.allclose(found.detach().float(), output.float(), atol=1e-4)


def test_each_image_is_fitted_by_itself(imaginer):
    """Whatever the batch, and however its noisy versions are divided."""
    x, labels = inputs(3)
    settings = InversionSettings(steps=1, noises=4, batch_size=12)
    whole, losses = Inverter(imaginer, settings)(x, labels, [1, 2, 3])
    parts = settings.model_copy(update={"batch_size": 3})
    assert torch.allclose(Inverter(imaginer, parts)(x, labels, [1, 2, 3])[0], whole, atol=2e-3)
    alone, loss = Inverter(imaginer, settings)(x[1:2], labels[1:2], [2])
    assert torch.allclose(alone, whole[1:2], atol=2e-3) and torch.allclose(loss, losses[:, 1:2], atol=1e-4)
    assert torch.allclose(whole.norm(dim=1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_refused_in_one_line(family, tmp_path):
    found = imaginer_of(any_families.save(tmp_path / "pipeline", family))
    x, labels = inputs()
    with pytest.raises(InputError, match=r"dream\.synthesis: \w+Pipeline .* expected dream\.space\.method: encoder$"):
        Inverter(found, InversionSettings(steps=1, noises=2))(x, labels, [1, 2])


# ------------------------------------------------------------------------------------------------------- the slow twin


def as_published(folder: Path, image: torch.Tensor, label: int, seed: int, settings: InversionSettings) -> torch.Tensor:
    """NCIS's procedure: one image, a new table each time, gradients for all of it of which one row's are kept.

    With the noise that the fast path draws, and on the sphere of the anchor, which NCIS leaves.
    """
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    table = pipe.text_encoder.get_input_embeddings()
    ids = pipe.tokenizer(TEMPLATE.format(NAMES[label]), padding="max_length", return_tensors="pt").input_ids
    (name,) = pipe.tokenizer(NAMES[label], add_special_tokens=False).input_ids
    anchor = table.weight[name].detach().clone()
    unit = anchor.norm() / len(anchor) ** 0.5
    free = (anchor / unit).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=settings.lr)
    z = pipe.vae.encode(image[None]).latent_dist.mean.detach() * pipe.vae.config.scaling_factor
    generator = torch.Generator().manual_seed(seed)
    original = table.weight.detach().clone()
    for _ in range(settings.steps):
        t = torch.randint(LEVELS, (settings.noises,), generator=generator) * 20 + 1
        noise = torch.randn(settings.noises, *z.shape[1:], generator=generator)
        optimizer.zero_grad()
        total = 0.0
        for step, one in zip(t, noise):
            token = anchor.norm() * free / free.norm()
            weight = torch.where(torch.arange(len(original))[:, None] == name, token, original)
            hidden = torch.func.functional_call(table, {"weight": weight}, (ids,))
            hook = table.register_forward_hook(lambda *args, hidden=hidden: hidden)
            context = pipe.text_encoder(ids)[0]
            hook.remove()
            share = pipe.scheduler.alphas_cumprod[step]
            noisy = share**0.5 * z + (1 - share) ** 0.5 * one
            total = total + (pipe.unet(noisy, step, context).sample - one).square().mean() / settings.noises
        total.backward()
        optimizer.step()
    return (free / free.norm()).detach()


def test_equals_the_published_procedure(tmp_path):
    folder = families.save(tmp_path / "pipeline", "sd1", NAMES)
    found, (x, labels) = imaginer_of(folder), inputs()
    labels = torch.tensor([2, 0])  # whose names are one token
    settings = InversionSettings(steps=2, noises=5, batch_size=6)
    fast, _ = Inverter(found, settings)(x, labels, [7, 8])
    slow = torch.stack([as_published(folder, x[i], int(labels[i]), 7 + i, settings) for i in range(2)])
    assert torch.allclose(fast, slow, atol=2e-3)
    anchors = F.normalize(found.placeholder.anchors[labels], dim=1)
    assert (fast - anchors).norm(dim=1).min() > 0.1  # it has moved


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_is_that_of_the_scheduler(kind):
    scheduler = diffusers.DDPMScheduler(prediction_type=kind)
    clean, noise, levels = torch.randn(50, 4, 3, 3), torch.randn(50, 4, 3, 3), torch.arange(50)
    noisy = noised(scheduler, clean, noise, levels)
    assert torch.allclose(noisy.latents, scheduler.add_noise(clean, noise, noisy.steps), atol=1e-6)
    expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, noisy.steps), "sample": clean}
    assert torch.allclose(noisy.target, expected[kind], atol=1e-6)


def test_the_loss_of_an_image_falls_under_its_own_token(tmp_path):
    """On noise that was not fitted to, the same for both tokens: that of each step says more of itself than of the token."""
    found = imaginer_of(families.save(tmp_path / "pipeline", "sd1", NAMES))
    x, labels = inputs()
    inverter = Inverter(found, InversionSettings(steps=40, noises=16, lr=0.1, batch_size=64))
    z, _ = inverter(x, labels, [1, 2])
    anchors = found.placeholder.anchors[labels]
    before, after = (inverter.loss(x, labels, t, 3) for t in (anchors, anchors.norm(dim=1, keepdim=True) * z))
    assert (after < before).all()


# -------------------------------------------------------------------------------------------------- memory, bad numbers


def test_goes_on_in_halves_where_memory_is_short(tmp_path, monkeypatch):
    found, (x, labels) = imaginer_of(families.save(tmp_path / "pipeline", "sd1", NAMES)), inputs()
    settings = InversionSettings(steps=1, noises=4, batch_size=8)
    whole, _ = Inverter(found, settings)(x, labels, [1, 2])
    losses = Inverter._losses

    def short(self, labels, tokens, clean, noise, levels):
        if levels.numel() > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, labels, tokens, clean, noise, levels)

    monkeypatch.setattr(Inverter, "_losses", short)
    inverter = Inverter(found, settings)
    with pytest.warns(UserWarning, match="from now on 2 at most"):
        found = inverter(x, labels, [1, 2])[0]
    assert torch.allclose(found, whole, atol=2e-3) and inverter.fitting == 2


def test_nothing_fits(tmp_path, monkeypatch):
    found, (x, labels) = imaginer_of(families.save(tmp_path / "pipeline", "sd1", NAMES)), inputs()

    def short(*args):
        raise MemoryError

    monkeypatch.setattr(Inverter, "_losses", short)
    with pytest.raises(InputError, match=r"dream\.space\.inversion\.batch_size: a single noisy image"):
        Inverter(found, InversionSettings(noises=2))(x, labels, [1, 2])


def test_a_loss_that_is_no_number_ends_it(tmp_path):
    found, (x, labels) = imaginer_of(families.save(tmp_path / "pipeline", "sd1", NAMES)), inputs()
    with pytest.raises(FloatingPointError, match=r"lower dream\.space\.inversion\.lr"):
        Inverter(found, InversionSettings(noises=2))(x * float("nan"), labels, [1, 2])


# ----------------------------------------------------------------------------------------------------------- the stage

INVERTED = """
dream:
  space:
    method: inversion
    inversion: {steps: 2, noises: 2, batch_size: 8}
  outliers: {k: 2, select: 3, n_boundary: 3, n_draws: 20, keep: 1, rounds: 2}
  synthesis: {per_class: 2}
"""


@pytest.fixture(scope="module")
def inverted(tmp_path_factory) -> list[str]:
    file = tmp_path_factory.mktemp("inverted") / "inverted.yml"
    file.write_text(INVERTED)
    return [str(file)]


def test_a_chain_of_diffusion_embeddings(tiny: Tiny, dream, inverted: list[str]):
    found = tiny.config(layers=inverted).imagination
    z = load_file(found.embedded.path / "embeddings.safetensors")
    assert found.embedded is found.inversion and found.space.path == dream.space.path
    assert found.images.manifest["images"] == 2 * len(found.names)
    assert set(torch.bincount(z["labels"]).tolist()) == {found.settings.space.per_class}
    assert torch.allclose(z["embeddings"].norm(dim=1), torch.ones(len(z["rows"])), atol=1e-5)
    assert torch.equal(found.data.coloured().images("dataset", "train").labels[z["rows"]], z["labels"])
    assert len(found.inversion.manifest["losses"]) == 2
    assert found.outliers.manifest["inputs"]["space"] == found.inversion.hash


def test_killed_inversion_goes_on_with_the_same_bytes(tiny: Tiny, dream, inverted: list[str], tmp_path, monkeypatch):
    monkeypatch.setattr(inversion, "SHARD", 10)
    found = tiny.config(layers=inverted).imagination
    source, train, call = found.source, found.data.coloured().images("dataset", "train"), Inverter.__call__
    calls: list[int] = []

    def make(place: str) -> tuple[int, bytes]:
        calls.clear()
        settings = found.settings
        artifact = inversion.make_inversion(
            source, found.names, train, settings.space, settings.synthesis, tmp_path / place, device="cpu"
        )
        return len(calls), (artifact.path / "embeddings.safetensors").read_bytes()

    def counted(self, *args):
        calls.append(1)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(Inverter, "__call__", counted)
    killed = 5
    with pytest.raises(KeyboardInterrupt):
        make("killed")
    (part,) = (tmp_path / "killed").glob("inversion-*/parts/000000.safetensors")
    content, killed = part.read_bytes(), 0
    save_file({name: tensor[:4].clone() for name, tensor in load_file(part).items()}, part)
    with pytest.raises(InputError, match=r"parts/000000\.safetensors: not 10 rows; delete it and run again"):
        make("killed")
    part.write_bytes(content)
    (rest, resumed), (whole, expected) = make("killed"), make("whole")
    assert resumed == expected and rest == 0 < whole
    assert not part.parent.exists()


# ------------------------------------------------------------------------------------------------ what is found early


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dream.space.network", "timm:resnetttt"], "resnetttt"),
        (["--dream.outliers.k", "30", "--dream.space.per_class", "30", "--dream.outliers.select", "30"], None),
    ],
)
def test_what_is_wrong_is_found_before_images_are_inverted(
    tiny: Tiny, dream, inverted, tmp_path, monkeypatch, words, line
):
    monkeypatch.setattr(Inverter, "__call__", lambda *args: pytest.fail("inverted an image"))
    pipeline = ["--dream.generator", str(dream.generator.path), "--dream.cache_dir", str(tmp_path)]
    if line is None:
        words, line = [*words, "--dream.outliers.k", "1000", "--dream.space.per_class", "1000"], r"outliers\.k"
    with pytest.raises(InputError, match=line):
        tiny.config(*pipeline, *words, layers=inverted).imagination.outliers  # noqa: B018


def test_tiles_are_another_inversion(tiny: Tiny, dream, inverted):
    kept = [
        tiny.config("--dream.synthesis.vae_tiling", word, layers=inverted).imagination.inversion
        for word in ("false", "true")
    ]
    assert kept[0].hash != kept[1].hash


def test_few_step_distillations(tmp_path):
    folder = families.save(tmp_path / "pipeline", "lcm", NAMES)
    x, labels = inputs()
    found, _ = Inverter(imaginer_of(folder, scheduler="own"), InversionSettings(steps=1, noises=2))(x, labels, [1, 2])
    assert torch.isfinite(found).all()
