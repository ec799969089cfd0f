"""Number formats and places of a pipeline's parts change how it is drawn, not what."""

from __future__ import annotations

import any_families
import pytest
import torch

from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.placing import drawing_dtype
from openood_dream.dream.residuals import lost
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source

NAMES = ["cat", "red panda", "dog"]


@pytest.mark.parametrize(
    "device, bf16, expected", [("cuda", True, "bfloat16"), ("cuda", False, "float16"), ("mps", False, "float16")]
)
def test_number_format_by_the_card(monkeypatch, device, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert drawing_dtype("auto", torch.device(device)) is getattr(torch, expected)
    assert drawing_dtype("auto", torch.device("cpu")) is torch.float32
    assert drawing_dtype("float32", torch.device(device)) is torch.float32


@pytest.mark.parametrize("init", ["noise", "id"])
@pytest.mark.parametrize("family", ["sd3", "flux", "z_image", "qwen_image"])
def test_every_family_draws_in_half_precision(tmp_path, family, init):
    """Where the autoencoder computes in float32 and the rest does not."""
    draws = [
        torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=d) for d in (torch.float16, torch.float32)
    ]
    if not torch.equal(draws[0], draws[1].half()):
        pytest.skip(f"torch {torch.__version__} draws other noise in half precision")
    source = Source(str(any_families.save(tmp_path / "pipeline", family)), None, None)
    starts = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1 if init == "id" else None
    drawn = []
    for dtype in ("float16", "float32"):
        settings = SynthesisSettings(steps=2, size=32, save_size=None, guidance=3.0, dtype=dtype, init=init)
        imaginer = Imaginer(load_pipeline(source, settings, "cpu"), NAMES, settings)
        drawn.append(imaginer(torch.tensor([0, 1]), None, [1, 2], starts=starts).float())
    assert (drawn[0] - drawn[1]).abs().mean() < 3 < drawn[1].std()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_parts_that_are_fetched_when_they_compute(tmp_path, family, dtype):
    """The hooks of `offload: model`, with the CPU in the GPU's place; with a GPU: test_cuda.py."""
    source = Source(str(any_families.save(tmp_path / "pipeline", family)), None, None)
    settings = SynthesisSettings(steps=2, size=32, save_size=None, guidance=3.0, dtype=dtype)
    real = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    found = []
    for offload in (False, True):
        pipe = load_pipeline(source, settings, "cpu")
        if offload:
            pipe.enable_model_cpu_offload(device=torch.device("cpu"))
        imaginer = Imaginer(pipe, NAMES, settings)
        tokens = imaginer.placeholder.anchors[[0, 1]] + 0.1
        found.append((imaginer(torch.tensor([0, 1]), tokens, [1, 2]), lost(pipe, real)))
    assert len(pipe._all_hooks) > 2
    assert (found[0][0].int() - found[1][0].int()).abs().max() <= 1
    assert torch.allclose(found[0][1], found[1][1], atol=1e-3)
