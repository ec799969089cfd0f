"""Any text-to-image pipeline of diffusers takes embeddings in place of class names, without code for its family."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import NamedTuple

import any_families
import diffusers
import pandas as pd
import pytest
import torch

from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.images import make_images
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact
from openood_dream.store.tables import write_table
from openood_dream.store.tensors import write_index, write_tensors

NAMES = ["cat", "red panda", "dog"]
TEMPLATE = "A high-quality image of the {}"
USUAL = {"steps": 2, "size": 32, "save_size": None, "batch_size": 4}


class Family(NamedTuple):
    folder: Path
    pipe: diffusers.DiffusionPipeline
    anchors: torch.Tensor
    imaginer: Imaginer


@pytest.fixture(scope="module", params=any_families.BUILDERS)
def family(request, tmp_path_factory) -> Family:
    folder = any_families.save(tmp_path_factory.mktemp(request.param) / "pipeline", request.param)
    settings = SynthesisSettings(**USUAL, guidance=3.0)
    source = Source(str(folder), None, None)
    anchors = load_anchors(make_anchors(source, dict.fromkeys(NAMES, TEMPLATE), folder.parent / "dream"))
    pipe = load_pipeline(source, settings, "cpu")
    return Family(folder, pipe, anchors, Imaginer(pipe, NAMES, settings))


def moved(family: Family, labels: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(len(labels), family.anchors.shape[1], generator=torch.Generator().manual_seed(0))
    return family.anchors[labels] + noise


def test_plain_prompt_is_what_diffusers_draws_and_the_anchor_draws_the_same(family):
    """Bit for bit, a name of several tokens included."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(family.folder)
    pipe.set_progress_bar_config(disable=True)
    extra = (
        {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ or "Sana" in type(pipe).__name__ else {}
    )
    for label, name in enumerate(NAMES):
        of, seeds = torch.tensor([label]), [7 + label]
        expected = pipe(
            prompt=[TEMPLATE.format(name)],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=32,
            width=32,
            num_inference_steps=2,
            guidance_scale=3.0,
            output_type="pt",
            **extra,
        ).images
        expected = (expected.float().clamp(0, 1) * 255).round().to(torch.uint8)
        assert torch.equal(family.imaginer(of, None, seeds), expected)
        assert torch.equal(family.imaginer(of, family.anchors[of], seeds), expected)


def test_anchor_draws_the_plain_prompt_in_half_precision_too(family):
    """Anchors are of the weights as they were saved, in float32."""
    settings = SynthesisSettings(**USUAL, guidance=3.0, dtype="bfloat16")
    imaginer = Imaginer(load_pipeline(Source(str(family.folder), None, None), settings, "cpu"), NAMES, settings)
    labels = torch.arange(3)
    plain = imaginer(labels, None, [1, 2, 3])
    assert torch.equal(imaginer(labels, family.anchors, [1, 2, 3]), plain)
    assert not torch.equal(imaginer(labels, moved(family, labels), [1, 2, 3]), plain)


def test_without_guidance(family):
    """There is no negative prompt then, and one prompt an image."""
    settings = SynthesisSettings(**USUAL, guidance=0.0)
    imaginer, labels = Imaginer(family.pipe, NAMES, settings), torch.arange(3)
    plain = imaginer(labels, None, [1, 2, 3])
    assert torch.equal(imaginer(labels, family.anchors, [1, 2, 3]), plain)
    found = [imaginer._draw(labels, one, [1, 2, 3], "pt") for one in (family.anchors, moved(family, labels))]
    assert not torch.equal(*found)


def outliers_of(family: Family, folder: Path) -> Artifact:
    """The artifact of two embeddings of each class."""
    folder.mkdir()
    labels = torch.arange(6) // 2
    tokens = moved(family, labels)
    write_tensors(folder / "all.safetensors", **{"embeddings.0": tokens})
    write_index(folder, "embeddings", [folder / "all.safetensors"])
    write_table(folder / "outliers.parquet", pd.DataFrame({"class": labels.numpy(), "boundary": 0, "distance": 1.0}))
    return Artifact(folder, {"hash": "some", "inputs": {"outliers": {"method": "knn"}}}, False)


def test_killed_set_goes_on_with_the_same_bytes(family, tmp_path, monkeypatch):
    source, outliers = Source(str(family.folder), None, {"folder": "some"}), outliers_of(family, tmp_path / "outliers")
    settings = SynthesisSettings(**USUAL, guidance=3.0, per_class=2, shard_size=2)

    def drawn(place: str) -> dict[str, bytes]:
        made = make_images(source, outliers, NAMES, settings, tmp_path / place, keeps_class=False, device="cpu")
        return {path.relative_to(made.path).as_posix(): path.read_bytes() for path in made.path.rglob("*.png")}

    whole, calls, draw = drawn("whole"), [], Imaginer.__call__

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Imaginer, "__call__", killed)
        drawn("killed")
    assert drawn("killed") == whole and len(whole) == 6


def test_a_class_with_a_prompt_of_its_own(family):
    """As DREAM-OOD's public code writes "kite bird" for a kite; the word behind the name is none of it."""
    own = {"red panda": "A high-quality {} image"}
    imaginer = Imaginer(family.pipe, NAMES, SynthesisSettings(**USUAL, guidance=3.0, prompts=own))
    labels = torch.arange(3)
    plain = imaginer(labels, None, [1, 2, 3])
    assert imaginer.placeholder.prompts(labels)[1] == "A high-quality red panda image"
    assert torch.equal(imaginer(labels, imaginer.placeholder.anchors, [1, 2, 3]), plain)
    usual = family.imaginer(labels, None, [1, 2, 3])
    assert torch.equal(usual[[0, 2]], plain[[0, 2]]) and not torch.equal(usual[1], plain[1])
    with pytest.raises(InputError, match=r"synthesis\.prompts: unknown 'red pnada'.*did you mean 'red panda'"):
        Imaginer(family.pipe, NAMES, SynthesisSettings(**USUAL, prompts={"red pnada": "{}"}))


def test_gradients_flow_to_embeddings(family):
    """Through every text encoder, each to its own part."""
    tokens, placeholder = family.anchors[[1]].clone().requires_grad_(), family.imaginer.placeholder
    text = placeholder.prompts(torch.tensor([1]))
    with placeholder.replaced(torch.tensor([1]), tokens):
        found = [
            one.module(one.tagger.tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True)
            for one in placeholder.encoders
        ]
    sum(output.hidden_states[-1].square().sum() for output in found).backward()
    assert all(part.abs().sum() > 0 for part in tokens.grad.split(placeholder.widths, dim=1))


def test_other_embeddings_draw_other_images(family):
    labels = torch.tensor([0, 1])
    plain = family.imaginer._draw(labels, family.anchors[labels], [1, 2], "pt")
    other = family.imaginer._draw(labels, moved(family, labels), [1, 2], "pt")
    assert ((plain - other).abs().flatten(1).amax(1) > 0).all()


def test_mixed_classes_in_a_batch_are_single_draws(family):
    labels, seeds = torch.tensor([1, 0, 2, 1]), [3, 4, 5, 6]
    tokens = moved(family, labels)
    together = family.imaginer(labels, tokens, seeds).int()
    for i in range(4):
        alone = family.imaginer(labels[[i]], tokens[[i]], seeds[i : i + 1])[0].int()
        assert (alone - together[i]).abs().max() <= 2


def test_negative_prompt_is_left_alone(family):
    settings = SynthesisSettings(**USUAL, guidance=3.0, negative_prompt="blurry cat")
    labels = torch.tensor([0, 2])
    if "negative_prompt" not in inspect.signature(family.pipe.__call__).parameters:
        with pytest.raises(InputError, match=r"dream\.synthesis\.negative_prompt: \w+ takes none"):
            Imaginer(family.pipe, NAMES, settings)
        return
    guided = Imaginer(family.pipe, NAMES, settings)
    assert torch.equal(guided(labels, family.anchors[labels], [1, 2]), guided(labels, None, [1, 2]))


def test_names_that_no_encoder_is_given(family, monkeypatch):
    """A pipeline that writes prompts in another way: in lower case it is understood, else refused."""
    labels = torch.tensor([1])
    imaginer = Imaginer(family.pipe, NAMES, family.imaginer.settings)
    plain = imaginer.placeholder.prompts
    monkeypatch.setattr(imaginer.placeholder, "prompts", lambda of: [text.lower() for text in plain(of)])
    imaginer(labels, family.anchors[labels], [1])
    monkeypatch.setattr(imaginer.placeholder, "prompts", lambda of: ["nothing"] * len(of))
    with pytest.raises(InputError, match=r"dream\.generator: the class names of the prompts do not come"):
        imaginer(labels, family.anchors[labels], [1])


def test_parts_of_text_encoders_have_one_length(family):
    parts = family.anchors.split(family.imaginer.placeholder.widths, dim=1)
    if len(parts) == 1:
        pytest.skip("has one text encoder")
    assert [part.norm(dim=1).mean().item() for part in parts] == pytest.approx([1.0] * len(parts), rel=1e-4)


def test_arguments_of_the_call(family):
    with pytest.raises(InputError, match=r"synthesis\.call: unknown 'max_sequence_lenght'"):
        Imaginer(family.pipe, NAMES, SynthesisSettings(**USUAL, call={"max_sequence_lenght": 64}))


def test_arguments_that_the_call_does_not_bear(family, monkeypatch):
    """What a pipeline raises is said with the key that it was given by; without one it is no matter of the config."""

    def refuses(*args, **given):
        raise AttributeError("'Encoder' object has no attribute 'text_model'")

    refuses.__signature__ = inspect.signature(family.pipe.__call__)
    word = next(name for name in ("max_sequence_length", "sigmas") if name in refuses.__signature__.parameters)
    imaginer = Imaginer(family.pipe, NAMES, SynthesisSettings(**USUAL, call={word: 1}))
    plain = Imaginer(family.pipe, NAMES, SynthesisSettings(**USUAL))
    monkeypatch.setattr(type(family.pipe), "__call__", refuses)
    with pytest.raises(
        InputError, match=rf"dream\.synthesis\.call: \w+ does not draw with .*{word}.*text_model.*leave it out"
    ):
        imaginer(torch.tensor([0]), None, [1])
    with pytest.raises(AttributeError, match="text_model"):
        plain(torch.tensor([0]), None, [1])


def test_flow_matching_keeps_its_scheduler(family):
    if "FlowMatch" not in type(family.pipe.scheduler).__name__:
        pytest.skip("does not match flows")
    with pytest.raises(InputError, match=r"synthesis\.scheduler: .* expected own, got 'ddim'"):
        load_pipeline(Source(str(family.folder), None, None), SynthesisSettings(**USUAL, scheduler="ddim"), "cpu")
