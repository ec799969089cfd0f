"""Where pipelines come from, and the text encoder of one that is to be trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.source import Source, given_source, make_text_encoder, word_tokenizer
from openood_dream.errors import InputError


def given(generator: str | Path) -> Source:
    return given_source(str(generator), None, "birds.yml: dream.generator")


# ---------------------------------------------------------------------------------------------------- a given pipeline


@pytest.mark.parametrize("generator", ["nowhere", "three/part/name", "empty"])
def test_no_pipeline(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"birds\.yml: dream\.generator: .*'{generator}'"):
        given(generator)


def test_hub_id():
    assert given("owner/name") == Source("owner/name", None, {"hub": "owner/name", "revision": None})


def test_lost_part(pipeline_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    path = broken / "text_encoder" / "model.safetensors"
    path.write_bytes(b"cut off")
    with pytest.raises(InputError, match=rf"{path}: .*dream\.generator"):
        given(broken).text_parts()
    path.unlink()
    with pytest.raises(InputError, match=r"dream\.generator: .*broken'"):
        given(broken).text_parts()


def test_identity_is_the_contents(pipeline_folder, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    before = given(folder).identity
    assert before == given(pipeline_folder).identity  # the same pipeline elsewhere
    (folder / ".cache").mkdir()
    (folder / ".cache" / "downloaded").write_text("today")
    assert given(folder).identity == before
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # other weights of the same size
    weights.write_bytes(content)
    assert given(folder).identity != before


# --------------------------------------------------------------------------------------- the text encoder to be trained


def test_every_word_is_one_token(tmp_path):
    words = "zero aquarium fish t-shirt crème 7-eleven a-very-long-compound-word A high-quality image of the".split()
    tokenizer = word_tokenizer([" ".join(words[:3]), " ".join(words[3:])])
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for word in "zero aquarium fish image of the A".split():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids).strip() == word.lower()
    for text in ("an unseen word", *words):
        assert tokenizer(text).input_ids == loaded(text).input_ids
    ids = loaded("image of the zero").input_ids
    assert ids[0] == loaded.bos_token_id and ids[-1] == loaded.eos_token_id and len(ids) == 6


def test_same_words_have_the_same_numbers():
    texts = ["zero", "one", "two", "three", "aquarium fish", "A high-quality image of the "]
    found = [word_tokenizer(texts).backend_tokenizer.to_str() for _ in range(5)]
    assert len({json.dumps(json.loads(text)["model"], sort_keys=True) for text in found}) == 1


def made(folder: Path, **changes) -> tuple[CLIPTokenizer, CLIPTextModel]:
    names = ["cat", "aquarium fish"]
    inputs = {"class_names": names, "prompt": "An image of the {}", "dim": 16, "norm": 0.4, "seed": 0} | changes
    make_text_encoder(inputs, folder)
    return (
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
    )


def test_token_embeddings(tmp_path):
    tokenizer, encoder = made(tmp_path, norm=0.3)
    table = encoder.get_input_embeddings().weight
    assert table.shape == (len(tokenizer), 16) and torch.allclose(table.norm(dim=1), torch.tensor(0.3), atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=2).fill_diagonal_(0)
    assert cosine.max() < 0.999


def test_longest_prompt_fits_exactly(tmp_path):
    tokenizer, encoder = made(tmp_path)
    ids = tokenizer("An image of the aquarium fish").input_ids
    assert len(ids) == tokenizer.model_max_length == encoder.config.max_position_embeddings
    assert encoder(torch.tensor([ids])).last_hidden_state.shape == (1, len(ids), 16)


def test_seed_leaves_torchs_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    encoders = [made(tmp_path / str(i), seed=seed)[1] for i, seed in enumerate((1, 1, 2))]
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in encoders]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
