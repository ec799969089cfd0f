"""Pipelines of other files than their own folder's: variants, one file, LoRA weights, words that they are taught."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import families
import pytest
import torch
from diffusers.loaders import single_file_model
from safetensors.torch import load_file, save_file

from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.settings import DreamSettings, SynthesisSettings
from openood_dream.dream.source import Source, given_source
from openood_dream.errors import InputError

SETTINGS = SynthesisSettings(steps=2, guidance=3.0, size=16, save_size=None, scheduler="own")
WHERE = "birds.yml: dream.generator"


def given(generator: Path | str, **more) -> Source:
    return given_source(str(generator), None, WHERE, **more)


def drawn(source: Source, names: list[str]) -> torch.Tensor:
    imaginer = Imaginer(load_pipeline(source, SETTINGS, "cpu"), names, SETTINGS)
    return imaginer(torch.arange(len(names)), None, list(range(len(names))))


def layout(pipeline: Path, folder: Path) -> Path:
    """A copy of a pipeline without weights, and without the folders of parts that nothing is drawn with."""
    return shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def one_file(pipeline: Path, file: Path, suffix: str = ".safetensors") -> Path:
    """All weights of a pipeline in one file, those of the text encoder under the names of Stable Diffusion's checkpoints."""
    weights = {
        part: load_file(next((pipeline / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")
    }
    text = {name.removeprefix("text_model."): tensor for name, tensor in weights.pop("text_encoder").items()}
    text = {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
    found = {name: tensor.contiguous() for part in (*weights.values(), text) for name, tensor in part.items()}
    path = file.with_suffix(suffix)
    torch.save(found, path) if suffix == ".ckpt" else save_file(found, path)
    return path


# ------------------------------------------------------------------------------------------------------------- variants


@pytest.fixture
def halved(pipeline_folder, tmp_path) -> Path:
    """A folder that has the weights of variant fp16 alone."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_folder)
    pipe.save_pretrained(tmp_path / "halved", variant="fp16")
    return tmp_path / "halved"


def test_variant(halved, pipeline_folder, names, tmp_path):
    source = given(halved, variant="fp16")
    assert torch.equal(drawn(source, names), drawn(given(pipeline_folder), names))
    found = [
        load_anchors(make_anchors(one, dict.fromkeys(names, "{}"), tmp_path))
        for one in (source, given(pipeline_folder))
    ]
    assert torch.equal(*found)
    assert source.identity != given(halved).identity


def test_folder_of_a_variant_alone(halved):
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.generator: cannot load .*halved'"):
        load_pipeline(given(halved), SETTINGS, "cpu")


# ------------------------------------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_one_file(suffix, pipeline_folder, names, tmp_path, monkeypatch):
    """Of UNet and VAE the file has diffusers' names, which need no translation; translating is diffusers' affair."""
    if not hasattr(single_file_model, "_should_convert_state_dict_to_diffusers"):
        pytest.skip(f"diffusers {diffusers.__version__} does not ask whether names need a translation")
    monkeypatch.setattr(
        single_file_model, "_should_convert_state_dict_to_diffusers", lambda own, found: own.keys() - found
    )
    file, parts = one_file(pipeline_folder, tmp_path / "all", suffix), layout(pipeline_folder, tmp_path / "layout")
    source = given(file, layout=str(parts))
    assert torch.equal(drawn(source, names), drawn(given(pipeline_folder), names))
    found = [
        load_anchors(make_anchors(one, dict.fromkeys(names, "{}"), tmp_path))
        for one in (source, given(pipeline_folder))
    ]
    assert torch.equal(*found)


def test_one_file_is_its_contents_and_its_layout(pipeline_folder, tmp_path):
    file, parts = one_file(pipeline_folder, tmp_path / "all"), layout(pipeline_folder, tmp_path / "layout")
    before = given(file, layout=str(parts)).identity
    assert given(shutil.copy(file, tmp_path / "copy.safetensors"), layout=str(parts)).identity == before
    index = json.loads((parts / "model_index.json").read_text())
    (parts / "model_index.json").write_text(json.dumps(index | {"_diffusers_version": "0"}))
    assert given(file, layout=str(parts)).identity != before


def test_one_file_that_is_none(pipeline_folder, tmp_path):
    parts = str(layout(pipeline_folder, tmp_path / "layout"))
    file = tmp_path / "cut.safetensors"
    file.write_bytes(b"cut off")
    with pytest.raises(InputError, match=rf"{file}: .*not a readable|{file}: .*restore"):
        load_pipeline(given(file, layout=parts), SETTINGS, "cpu")
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.generator: no file '.*lost\.ckpt'"):
        given(tmp_path / "lost.ckpt", layout=parts)


def test_one_file_has_no_variants():
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.variant: .*leave 'fp16' out"):
        given("all.safetensors", layout="owner/name", variant="fp16")


@pytest.mark.parametrize("generator, more", [("all.safetensors", {}), ("owner/name", {"layout": "owner/name"})])
def test_layout_is_of_one_file(generator, more):
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.layout: .*one file.*expected the folder or hub id"):
        given(generator, **more)


# ---------------------------------------------------------------------------------------------------------------- words


def word_file(file: Path, **tensors: torch.Tensor) -> str:
    save_file(tensors, file)
    return str(file)


def test_lora_on_the_command_line(tiny):
    words = ["--dream.generator", "some/model", "--dream.lora", "[some/weights, 0.5]"]
    assert tiny.config(*words).dream.lora == ("some/weights", 0.5)


def test_a_word_is_a_class_name(pipeline_folder, names, tmp_path):
    token = torch.randn(1, 16)
    word = word_file(tmp_path / "learned.safetensors", **{"<kite>": token})
    source = given(pipeline_folder, words=[word])
    anchors = load_anchors(make_anchors(source, dict.fromkeys(["cat", "<kite>"], "{}"), tmp_path))
    assert torch.equal(anchors[1], token[0])
    plain = drawn(source, ["cat", "<kite>"])
    imaginer = Imaginer(load_pipeline(source, SETTINGS, "cpu"), ["cat", "<kite>"], SETTINGS)
    assert (imaginer(torch.tensor([0, 1]), anchors, [0, 1]).int() - plain.int()).abs().max() <= 1
    before = drawn(given(pipeline_folder), ["cat"])[0]  # other words are as they were
    assert (plain[0].int() - before.int()).abs().max() <= 1


def test_words_of_two_text_encoders(names, tmp_path):
    folder = families.save(tmp_path / "xl", "sdxl", names)
    parts = {"clip_l": torch.randn(1, 16), "clip_g": torch.randn(1, 24)}
    source = given(folder, words=[word_file(tmp_path / "kite.safetensors", **parts)])
    pairs = source.text_parts()
    for (tokenizer, encoder), expected in zip(pairs, parts.values()):
        (number,) = tokenizer("kite", add_special_tokens=False).input_ids
        assert torch.equal(encoder.get_input_embeddings().weight[number], expected[0])


def test_identity_has_the_words(pipeline_folder, tmp_path):
    word = word_file(tmp_path / "one.safetensors", **{"<kite>": torch.zeros(1, 16)})
    before = given(pipeline_folder, words=[word]).identity
    assert before != given(pipeline_folder).identity
    word_file(tmp_path / "one.safetensors", **{"<kite>": torch.ones(1, 16)})
    assert given(pipeline_folder, words=[word]).identity != before


@pytest.mark.parametrize("tensors", [{"<|endoftext|>": torch.zeros(1, 16)}, {"<kite>": torch.zeros(1, 5)}])
def test_word_that_cannot_be_taught(tensors, pipeline_folder, tmp_path):
    source = given(pipeline_folder, words=[word_file(tmp_path / "one.safetensors", **tensors)])
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.words: StableDiffusionPipeline cannot be taught '"):
        source.text_parts()


def test_lost_word(pipeline_folder, tmp_path):
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.words: no file '.*lost\.safetensors'"):
        given(pipeline_folder, words=[str(tmp_path / "lost.safetensors")])


# ----------------------------------------------------------------------------------------------------------------- LoRA

PLACE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture
def lora(tmp_path) -> Path:
    """Weights of rank 2 at one place of the UNet."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 16, generator=generator), torch.randn(8, 2, generator=generator)
    file = tmp_path / "lora.safetensors"
    save_file({f"unet.{PLACE}.lora_A.weight": down, f"unet.{PLACE}.lora_B.weight": up}, file)
    return file


def test_lora_is_merged(lora, pipeline_folder, names, tmp_path):
    pytest.importorskip("peft")
    plain = load_pipeline(given(pipeline_folder), SETTINGS, "cpu").unet
    merged = load_pipeline(given(pipeline_folder, lora=(str(lora), 0.5)), SETTINGS, "cpu").unet
    tensors = load_file(lora)
    before, after = (unet.get_submodule(PLACE).weight for unet in (plain, merged))
    product = tensors[f"unet.{PLACE}.lora_B.weight"] @ tensors[f"unet.{PLACE}.lora_A.weight"]
    assert torch.allclose(after, before + 0.5 * product, atol=1e-5) and not torch.equal(after, before)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_lora_of_another_pipeline(pipeline_folder, tmp_path):
    pytest.importorskip("peft")
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 4)}, tmp_path / "other.safetensors")
    source = given(pipeline_folder, lora=(str(tmp_path / "other.safetensors"), 1.0))
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.lora: .*other\.safetensors'.*expected LoRA weights"):
        load_pipeline(source, SETTINGS, "cpu")


def test_lora_without_peft(lora, pipeline_folder, monkeypatch):
    monkeypatch.setattr("openood_dream.extras.find_spec", lambda module: None)
    source = given(pipeline_folder, lora=(str(lora), 1.0))
    with pytest.raises(InputError, match=r"^birds\.yml: dream\.lora: peft is not installed"):
        load_pipeline(source, SETTINGS, "cpu")


def test_identity_has_the_lora_and_anchors_do_not(lora, pipeline_folder):
    plain, half, whole = (given(pipeline_folder, lora=one) for one in (None, (str(lora), 0.5), (str(lora), 1.0)))
    assert plain.identity != half.identity != whole.identity
    assert plain.text_identity == half.text_identity == whole.text_identity == plain.identity


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("key, value", [("variant", "fp16"), ("lora", ["a", 1.0]), ("words", ["a.safetensors"])])
def test_trained_generators_take_none_of_it(key, value):
    with pytest.raises(ValueError, match="this one is trained"):
        DreamSettings(class_names=["a", "b"], generator={"train": "small"}, **{key: value})


def test_folder_without_parts_that_nothing_is_drawn_with(pipeline_folder, names, tmp_path):
    """Downloads leave out the safety checker and what prepares images for it."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "bare")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(drawn(given(folder), names), drawn(given(pipeline_folder), names))


OTHERS = ["StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline"]
OTHERS += ["UnCLIPPipeline", "StableVideoDiffusionPipeline", "StableDiffusionControlNetPipeline", "WanPipeline"]


@pytest.mark.parametrize("name", OTHERS)
def test_pipelines_for_other_tasks_are_refused_by_name(name, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": name}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"^birds\.yml: dream\.generator: .* is a {name}; expected"):
        given(folder).index  # noqa: B018
