"""Class names are found in what tokenizers write, whatever a pipeline makes of prompts, and nothing else is touched."""

from __future__ import annotations

import any_families
import pytest
import torch

from openood_dream.dream.source import word_tokenizer
from openood_dream.dream.tagging import TAG, Tagger, untagged, written

NAMES = ["cat", "cattle", "red panda", "a cat"]
TEMPLATE = "An image of the {}, quality"


@pytest.fixture(scope="module", params=["bytes", "words"])
def tokenizer(request):
    """One that writes most names in several tokens, and one of CLIP's kind, whose every word is a token."""
    return any_families.tokenizer() if request.param == "bytes" else word_tokenizer([*NAMES, TEMPLATE, "a user: <>"])


def names_in(tokenizer, text: str, **options) -> tuple[list[str], list[int]]:
    """What is tagged in a text, decoded, and the ids without tags."""
    with Tagger(tokenizer, dict.fromkeys(NAMES, TEMPLATE)).tagging():
        ids = tokenizer([text], return_tensors="pt", **options).input_ids
    clean, named = untagged(ids)
    return tokenizer.decode(clean[named]).strip(), clean[0].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frame", ["{}", "a user: <{}>", "{} image of the cat"])
@pytest.mark.parametrize("change", [str, str.lower])
def test_name_within_whatever_a_pipeline_writes(tokenizer, name, frame, change):
    text = change(frame.format(TEMPLATE.format(name)))
    found, ids = names_in(tokenizer, text)
    assert found.lower() == name
    assert ids == tokenizer(text).input_ids


def test_other_texts_have_none(tokenizer):
    for text in ("", "a cat", "image of the cat"):
        assert names_in(tokenizer, text)[0] == ""


def test_lists_and_padding(tokenizer):
    tokenizer.model_max_length = 40
    with Tagger(tokenizer, dict.fromkeys(NAMES, TEMPLATE)).tagging():
        alone = tokenizer(TEMPLATE.format("cat")).input_ids
        rows = tokenizer([TEMPLATE.format("cat"), "cat"], padding="max_length").input_ids
    assert sum(number >= TAG for number in alone) == sum(number >= TAG for number in rows[0]) > 0
    assert len(rows[0]) == 40 and all(number < TAG for number in rows[1])
    assert type(tokenizer).__name__ != "Tagging" and all(number < TAG for number in tokenizer(TEMPLATE).input_ids)


def test_chat_templates_are_tagged_too():
    tokenizer = any_families.tokenizer()
    said = [{"role": "user", "content": TEMPLATE.format("red panda")}]
    with Tagger(tokenizer, dict.fromkeys(NAMES, TEMPLATE)).tagging():
        found = tokenizer.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt").input_ids
    clean, named = untagged(found)
    assert tokenizer.decode(clean[named]).strip() == "red panda"


@pytest.mark.parametrize("text", ["of the red panda, quality", "red panda", "panda red panda panda"])
def test_places_without_offsets_are_those_with_them(text):
    """Tokenizers in Python, which CLIP's is in older versions of transformers, do not tell where tokens come from."""
    tokenizer = word_tokenizer([*NAMES, TEMPLATE])
    start = text.index("red")
    slow, fast = (written(tokenizer, fast, text, start, start + len("red panda")) for fast in (False, True))
    assert slow == fast and len(fast.places) == 2


def test_tags_come_off():
    ids, named = untagged(torch.tensor([[3, 4 + TAG, 5]]))
    assert ids.tolist() == [[3, 4, 5]] and named.tolist() == [[False, True, False]]
