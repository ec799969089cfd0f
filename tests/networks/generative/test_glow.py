"""GLOW: it inverts, and its log-determinant is that of its Jacobian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openood_dream.networks.generative.glow import ActNorm, Coupling, Glow, Invertible1x1, Step


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """A model away from its start, at which many layers do nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("channels", [1, 4])
def test_glow_inverts(channels):
    model = shaken(Glow(channels, 16, levels=3, steps=4, width=16)).eval()
    x = torch.rand(5, channels, 16, 16) - 0.5
    with torch.no_grad():
        latents, _ = model.encode(x)
        back = model.decode(latents)
    assert (back - x).abs().max() < 1e-4
    assert (latents[0] - F.pixel_unshuffle(x, 2)[:, : latents[0].shape[1]]).abs().max() > 0.1


def _first_batch(rank: int, folder: str) -> None:
    """What each of two processes does in the next test: its half of the batch goes through a model that is at its start."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", world_size=2, rank=rank)
    _begun(torch.load(f"{folder}/images.pt").chunk(2)[rank], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _begun(images: torch.Tensor, file: str) -> None:
    torch.manual_seed(0)
    model = Glow(1, 8, levels=2, steps=2, width=8).train()
    model.bound(images)
    torch.save([parameter.detach() for parameter in model.parameters()], file)


def test_processes_begin_with_one_model(tmp_path):
    images = torch.cat([torch.randint(0, 60, (6, 1, 8, 8)), torch.randint(100, 256, (6, 1, 8, 8))]).float()
    torch.save(images, tmp_path / "images.pt")
    torch.multiprocessing.spawn(_first_batch, (str(tmp_path),), nprocs=2)
    _begun(images, f"{tmp_path}/alone.pt")
    alone, *both = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", 0, 1))
    for parameters in zip(alone, *both):
        assert torch.equal(parameters[1], parameters[2])
        torch.testing.assert_close(parameters[0], parameters[1], rtol=0, atol=0.2)  # each draws its own noise


@pytest.mark.parametrize("layer", [ActNorm, Invertible1x1, lambda c: Coupling(c, 8), lambda c: Step(c, 8)])
def test_log_determinants(layer):
    layer, x = shaken(layer(4)).double().eval(), torch.randn(1, 4, 3, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0].flatten(), x).reshape(36, 36)
    assert layer(x)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-6)
    assert (layer.inverse(layer(x)[0]) - x).abs().max() < 1e-6


def test_density():
    model = shaken(Glow(1, 4, levels=2, steps=2, width=8)).double().eval()
    x = torch.rand(1, 1, 4, 4).double() - 0.5

    def flat(v: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.flatten() for z in model.encode(v)[0]])

    jacobian = torch.autograd.functional.jacobian(flat, x).reshape(16, 16)
    latents, log_p = model.encode(x)
    kept = model.priors[0](kept_channels(model, x)).log_prob(latents[0]).sum()
    last = model.priors[1](latents[1]).log_prob(latents[1]).sum()
    assert log_p.item() == pytest.approx((torch.linalg.slogdet(jacobian)[1] + kept + last).item(), abs=1e-6)


def kept_channels(model: Glow, x: torch.Tensor) -> torch.Tensor:
    """What goes on to the second level."""
    x = F.pixel_unshuffle(x, 2)
    for step in model.levels[0]:
        x, _ = step(x)
    return x.chunk(2, dim=1)[0]


def test_the_first_batch_normalises():
    norm = ActNorm(3).train()
    x = 5 + 2 * torch.randn(16, 3, 8, 8)
    y, _ = norm(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-4 and (y.std((0, 2, 3)) - 1).abs().max() < 1e-2
    again, _ = norm(x + 1)
    assert again.mean() > 0.3  # it goes on with what it has


def test_log_prob_of_integers():
    model = Glow(1, 8, levels=1, steps=2, width=8).eval()
    x, noise = torch.randint(0, 256, (2, 1, 8, 8)), torch.rand(1, 1, 8, 8)
    density = model.encode((x + noise) / 256 - 0.5)[1]
    assert torch.allclose(model.log_prob(x, noise), density - 64 * torch.log(torch.tensor(256.0)), atol=1e-3)


def test_samples_are_images():
    drawn = Glow(4, 16, levels=2, steps=2, width=8).eval().sample(3)
    assert drawn.shape == (3, 4, 16, 16) and drawn.dtype == torch.uint8 and drawn.unique().numel() > 20
