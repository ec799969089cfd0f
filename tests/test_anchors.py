"""T(y): rows of the text encoder's input table, for names of one token and of several."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import anchors
from openood_dream.config import InputError


@pytest.fixture(scope="module")
def parts(pipeline_folder):
    """Tokenizer and text encoder of the pipeline, loaded by transformers alone."""
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    return tokenizer, CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder")


@pytest.fixture
def config(tiny, pipeline_folder, names, tmp_path):
    """The tiny config with the saved pipeline as its generator and three classes."""
    return tiny.config(
        "--dream.generator",
        str(pipeline_folder),
        "--dream.class_names",
        str(names),
        "--dataset.num_classes",
        "3",
        "--dream.cache_dir",
        str(tmp_path),
    )


# --------------------------------------------------------------------------------------------------------- given T(y)


def test_an_anchor_is_its_tokens_row_of_the_input_table(config, parts, names, pipeline_folder):
    tokenizer, encoder = parts
    found = anchors.load(anchors.run(config))
    saved = load_file(pipeline_folder / "text_encoder" / "model.safetensors")
    table = next(weight for key, weight in saved.items() if key.endswith("token_embedding.weight"))
    assert found.shape == (3, 16)
    for name in ("cat", "dog"):
        begin, token, end = tokenizer(name).input_ids
        assert torch.equal(found[names.index(name)], table[token])
        # not the encoder's output, which is what OAL's public anchors are
        output = encoder(torch.tensor([[begin, token, end]])).last_hidden_state[0, 1]
        assert not torch.allclose(found[names.index(name)], output, atol=1e-2)


def test_a_name_of_several_tokens_has_their_mean_direction_and_mean_length():
    table, ids = torch.randn(50, 16), [[3], [4, 9], [5, 5], [1, 2, 3]]
    found = anchors.token_anchors(table, ids)
    assert torch.equal(found[0], table[3])
    for row, tokens in zip(found, ids):
        direction = sum(table[token] for token in tokens)
        length = sum(float(table[token].norm()) for token in tokens) / len(tokens)
        assert torch.allclose(row, direction / direction.norm() * length, atol=1e-5)


def test_the_first_or_the_last_token_can_stand_for_the_name():
    table, ids = torch.randn(50, 16), [[3], [4, 9, 2]]
    assert torch.equal(anchors.token_anchors(table, ids, "first"), table[[3, 4]])
    assert torch.equal(anchors.token_anchors(table, ids, "last"), table[[3, 2]])


def test_the_manifest_says_which_tokens_made_the_anchor_and_how_long_it_is(config, names):
    artifact = anchors.run(config)
    assert artifact.manifest["tokens"]["aquarium fish"] == ["aquarium</w>", "fish</w>"]
    assert list(artifact.manifest["norms"]) == names
    norms = anchors.load(artifact).norm(dim=1).tolist()
    assert list(artifact.manifest["norms"].values()) == pytest.approx(norms)


def test_anchors_are_reused_until_names_tokens_or_pipeline_change(config, names, tmp_path, pipeline_folder):
    first = anchors.run(config)
    assert anchors.run(config).reused
    config.dream.anchors = {"multi_token": "last"}
    last = anchors.run(config)
    assert not last.reused and not torch.equal(anchors.load(last)[1], anchors.load(first)[1])
    config.dream.anchors = {"multi_token": "mean"}
    config.dream.class_names = ["cat", "fish", "dog"]
    assert not anchors.run(config).reused
    config.dream.class_names = names
    shutil.copytree(pipeline_folder, tmp_path / "moved")
    config.dream.generator = str(tmp_path / "moved")
    assert anchors.run(config).reused  # the same pipeline elsewhere
    (tmp_path / "moved" / "extra.bin").write_bytes(b"another pipeline")
    assert not anchors.run(config).reused


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_a_generator_that_is_none_is_named(config, tmp_path):
    cases = {
        str(tmp_path / "nowhere"): r"dream\.generator: no folder '.*nowhere'",
        "three/part/name": r"dream\.generator: no folder 'three/part/name'",
        str(tmp_path): r"dream\.generator: folder '.*' has no model_index\.json",
    }
    for generator, message in cases.items():
        config.dream.generator = generator
        with pytest.raises(InputError, match=message + r"; expected a Stable Diffusion folder, a hub id .* or \{train"):
            anchors.run(config)


def test_a_pipeline_folder_that_lost_a_part_is_named(config, pipeline_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    path = broken / "text_encoder" / "model.safetensors"
    path.write_bytes(b"cut off")
    config.dream.generator = str(broken)
    with pytest.raises(InputError, match=rf"{path}: not a readable safetensors file .*; restore it, or change dream\."):
        anchors.run(config)
    path.unlink()
    with pytest.raises(
        InputError, match=r"dream\.generator: cannot load '.*broken' \(.*\); expected a Stable Diffusion"
    ):
        anchors.run(config)


def test_a_name_without_a_token_is_named(parts):
    with pytest.raises(InputError, match=r"dream\.class_names: the generator's tokenizer has no token for ' '"):
        anchors.name_tokens(parts[0], ["cat", " "])


# -------------------------------------------------------------------------------------- the text encoder to be trained


def test_every_word_is_one_token_and_stays_so_when_saved_and_loaded(tmp_path):
    words = "zero aquarium fish t-shirt crème 7-eleven a-very-long-compound-word A high-quality image of the".split()
    tokenizer = anchors.word_tokenizer([" ".join(words[:3]), " ".join(words[3:])])
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for word in "zero aquarium fish image of the A".split():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids).strip() == word.lower()
    for text in ("an unseen word", *words):
        assert tokenizer(text).input_ids == loaded(text).input_ids
    ids = loaded("image of the zero").input_ids
    assert ids[0] == loaded.bos_token_id and ids[-1] == loaded.eos_token_id and len(ids) == 6


def test_the_same_words_have_the_same_numbers_every_time():
    texts = ["zero", "one", "two", "three", "aquarium fish", "A high-quality image of the "]
    found = [anchors.word_tokenizer(texts).backend_tokenizer.to_str() for _ in range(5)]
    assert len({json.dumps(json.loads(text)["model"], sort_keys=True) for text in found}) == 1


def make(folder, **changes):
    inputs = {
        "class_names": ["cat", "aquarium fish"],
        "prompt": "An image of the {}",
        "dim": 16,
        "norm": 0.4,
        "seed": 0,
    } | changes
    anchors.make_text_encoder(inputs, folder)
    return (
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
    )


def test_new_token_embeddings_have_the_norm_asked_for_and_differ(tmp_path):
    tokenizer, encoder = make(tmp_path, norm=0.3)
    table = encoder.get_input_embeddings().weight
    assert table.shape == (len(tokenizer), 16) and torch.allclose(table.norm(dim=1), torch.tensor(0.3), atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=2).fill_diagonal_(0)
    assert cosine.max() < 0.999


def test_the_prompt_with_the_longest_name_fits_exactly(tmp_path):
    tokenizer, encoder = make(tmp_path)
    ids = tokenizer("An image of the aquarium fish").input_ids
    assert len(ids) == tokenizer.model_max_length == encoder.config.max_position_embeddings
    assert encoder(torch.tensor([ids])).last_hidden_state.shape == (1, len(ids), 16)


def test_the_seed_decides_the_text_encoder_and_leaves_torchs_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tables = [
        make(tmp_path / str(i), seed=seed)[1].get_input_embeddings().weight.detach() for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


def test_weights_of_one_size_that_were_swapped_make_another_generator(tiny, pipeline_folder, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    config = tiny.config("--dream.generator", str(folder))
    before = anchors.given_source(config).identity
    (folder / ".cache").mkdir()
    (folder / ".cache" / "downloaded").write_text("today")
    assert anchors.given_source(config).identity == before
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert anchors.given_source(config).identity != before
