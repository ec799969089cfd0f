"""T(y): rows of the text encoder's input table, for names of one token and of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.anchors import check_distinct, load_anchors, make_anchors
from openood_dream.dream.placeholder import Placeholder
from openood_dream.dream.prompts import mean_token
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

    def stage(names: list[str] = names, prompt: str = "the {}") -> Artifact:
        source = given_source(str(pipeline_folder), None, "dream.generator")
        return make_anchors(source, dict.fromkeys(names, prompt), tmp_path)

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
    for rows in (torch.randn(1, 16), torch.randn(2, 16), torch.randn(3, 16)):
        direction = sum(rows)
        length = sum(float(row.norm()) for row in rows) / len(rows)
        assert torch.allclose(mean_token(rows), direction / direction.norm() * length, atol=1e-5)
    assert torch.equal(mean_token(rows[:1]), rows[0])


def test_manifest(run, names):
    artifact = run()
    assert artifact.manifest["tokens"]["aquarium fish"] == ["aquarium</w>", "fish</w>"]
    assert list(artifact.manifest["norms"]) == names
    norms = load_anchors(artifact).norm(dim=1).tolist()
    assert list(artifact.manifest["norms"].values()) == pytest.approx(norms)


def test_reused_until_something_changes(run):
    run()
    assert run().reused
    assert run(prompt="image of the {}").reused  # CLIP writes a name alike in every prompt
    assert not run(names=["cat", "fish", "dog"]).reused


def test_name_without_token(parts):
    with pytest.raises(ValueError, match="no token for ' '"):
        Placeholder([parts], {"cat": "the {}", " ": "the {}"})


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
