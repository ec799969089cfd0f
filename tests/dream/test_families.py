"""Each family of pipelines draws as diffusers alone does, and takes embeddings in place of its class tokens."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import diffusers
import families
import numpy as np
import pytest
import torch

from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError

TEMPLATE = "A high-quality image of the {}"
FEW_STEPS = {"lcm": {"steps": 4, "guidance": 0.0}, "turbo": {"steps": 1, "guidance": 0.0}}


class Family(NamedTuple):
    """A saved pipeline of one architecture, loaded by us, its anchors, and the settings that suit it."""

    name: str
    folder: Path
    pipe: diffusers.DiffusionPipeline
    anchors: torch.Tensor
    settings: SynthesisSettings

    def draw(self, names, labels, tokens, seeds) -> torch.Tensor:
        return Imaginer(self.pipe, names, self.settings)(torch.tensor(labels), tokens, list(seeds)).int()


@pytest.fixture(scope="module", params=families.SCHEDULERS)
def family(request, tmp_path_factory, names) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    families.save(folder / "pipeline", request.param, names)
    usual = {"steps": 3, "guidance": 3.0, "size": 16, "save_size": None, "scheduler": "own"}
    settings = SynthesisSettings(**usual | FEW_STEPS.get(request.param, {}))
    source = Source(str(folder / "pipeline"), None, None)
    anchors = load_anchors(make_anchors(source, dict.fromkeys(names, TEMPLATE), folder / "dream"))
    return Family(request.param, folder / "pipeline", load_pipeline(source, settings, "cpu"), anchors, settings)


def test_plain_prompts_are_what_diffusers_draws(family, names):
    pipe = diffusers.DiffusionPipeline.from_pretrained(family.folder)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in generators])
    expected = pipe(
        prompt=[TEMPLATE.format(names[label]) for label in (0, 1, 2)],
        latents=noise,
        generator=generators,
        height=16,
        width=16,
        num_inference_steps=family.settings.steps,
        guidance_scale=family.settings.guidance,
        output_type="np",
    ).images
    found = family.draw(names, [0, 1, 2], None, [3, 4, 5])
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - 255 * expected).max() <= 1


def test_anchor_gives_the_very_image_of_the_plain_prompt(family, names):
    """Bit for bit, a name of two tokens included."""
    plain = family.draw(names, [0, 1, 2], None, [5, 6, 7])
    assert torch.equal(family.draw(names, [0, 1, 2], family.anchors, [5, 6, 7]), plain)


def test_two_embeddings_give_different_images(family, names):
    tokens = torch.nn.functional.normalize(torch.randn(2, family.anchors.shape[1]), dim=1) * family.anchors[0].norm()
    one, other = family.draw(names, [0, 0], tokens, [7, 7])
    assert (one - other).abs().max() > 3


def test_image_does_not_depend_on_its_batch(family, names):
    together = family.draw(names, [0, 1, 2], family.anchors, [5, 6, 7])
    for label in range(3):
        alone = family.draw(names, [label], family.anchors[[label]], [5 + label])[0]
        assert (alone - together[label]).abs().max() <= 1


def test_anchors_of_two_text_encoders_are_the_rows_of_both_at_one_length(family, names):
    if family.name != "sdxl":
        pytest.skip("has one text encoder")
    (token,) = family.pipe.tokenizer("dog", add_special_tokens=False).input_ids
    encoders = family.pipe.text_encoder, family.pipe.text_encoder_2
    tables = [encoder.get_input_embeddings().weight for encoder in encoders]
    parts = family.anchors.split([table.shape[1] for table in tables], dim=1)
    for part, table in zip(parts, tables, strict=True):
        assert part.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-5)
        row = part[names.index("dog")]
        assert torch.allclose(row / row.norm(), table[token] / table[token].norm(), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["StableDiffusionInpaintPipeline", "StableDiffusionUpscalePipeline", "UnCLIPPipeline", "WanPipeline"]
)
def test_pipeline_for_another_task(name, tmp_path):
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}", "transformer": ["diffusers", "X"]}}')
    with pytest.raises(InputError, match=rf"dream\.generator: .* is a {name}; expected .* images of text alone"):
        load_pipeline(Source(str(tmp_path), None, None), SynthesisSettings(), "cpu")
