"""T(y): rows of the text encoder's input table, for names of one token and of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.anchors import check_distinct, load_anchors, make_anchors, name_tokens
from openood_dream.dream.prompts import token_anchors
from openood_dream.dream.settings import AnchorSettings
from openood_dream.dream.source import given_source
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact


@pytest.fixture(scope="module")
def parts(pipeline_folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Tokenizer and text encoder of the pipeline, loaded by transformers alone."""
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    return tokenizer, CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder")


@pytest.fixture
def run(pipeline_folder: Path, names: list[str], tmp_path: Path) -> Callable[..., Artifact]:
    """Runs the stage on the saved pipeline."""

    def stage(multi_token: str = "mean", names: list[str] = names) -> Artifact:
        source = given_source(str(pipeline_folder), None, "dream.generator")
        return make_anchors(source, names, AnchorSettings(multi_token=multi_token), tmp_path)

    return stage


def test_row_of_the_input_table(run, parts, names, pipeline_folder):
    tokenizer, encoder = parts
    found = load_anchors(run())
    saved = load_file(pipeline_folder / "text_encoder" / "model.safetensors")
    table = next(weight for key, weight in saved.items() if key.endswith("token_embedding.weight"))
    assert found.shape == (3, 16)
    for name in ("cat", "dog"):
        begin, token, end = tokenizer(name).input_ids
        assert torch.equal(found[names.index(name)], table[token])
        # not the encoder's output, which is what OAL's public anchors are
        output = encoder(torch.tensor([[begin, token, end]])).last_hidden_state[0, 1]
        assert not torch.allclose(found[names.index(name)], output, atol=1e-2)


def test_mean_of_several_tokens():
    table, ids = torch.randn(50, 16), [[3], [4, 9], [5, 5], [1, 2, 3]]
    found = token_anchors(table, ids)
    assert torch.equal(found[0], table[3])
    for row, tokens in zip(found, ids):
        direction = sum(table[token] for token in tokens)
        length = sum(float(table[token].norm()) for token in tokens) / len(tokens)
        assert torch.allclose(row, direction / direction.norm() * length, atol=1e-5)


def test_first_or_last_token():
    table, ids = torch.randn(50, 16), [[3], [4, 9, 2]]
    assert torch.equal(token_anchors(table, ids, "first"), table[[3, 4]])
    assert torch.equal(token_anchors(table, ids, "last"), table[[3, 2]])


def test_manifest(run, names):
    artifact = run()
    assert artifact.manifest["tokens"]["aquarium fish"] == ["aquarium</w>", "fish</w>"]
    assert list(artifact.manifest["norms"]) == names
    norms = load_anchors(artifact).norm(dim=1).tolist()
    assert list(artifact.manifest["norms"].values()) == pytest.approx(norms)


def test_reused_until_something_changes(run):
    first = run()
    assert run().reused
    last = run("last")
    assert not last.reused and not torch.equal(load_anchors(last)[1], load_anchors(first)[1])
    assert not run(names=["cat", "fish", "dog"]).reused


def test_name_without_token(parts):
    with pytest.raises(ValueError, match="no token for ' '"):
        name_tokens(parts[0], ["cat", " "])


@pytest.mark.parametrize(
    "rows, line", [([[1.0, 2.0], [1.0, 2.0]], "'a' and 'b' have the same"), ([[1.0, 2.0], [0.0, 0.0]], "'b' is zero")]
)
def test_every_class_has_an_anchor_of_its_own(rows, line):
    with pytest.raises(ValueError, match=line):
        check_distinct(torch.tensor(rows), ["a", "b"])
    check_distinct(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), ["a", "b"])


def test_names_that_mean_the_same_are_refused_by_file_and_key(tiny, tmp_path):
    names = '["cat dog", "dog cat", a, b, c, d]'
    (tmp_path / "own.yml").write_text(f"dream: {{class_names: {names}, cache_dir: {tmp_path / 'dream'}}}")
    with pytest.raises(InputError, match=r"own\.yml: dream\.class_names: 'cat dog' and 'dog cat' have the same"):
        tiny.config(layers=[str(tmp_path / "own.yml")]).imagination.anchors  # noqa: B018
