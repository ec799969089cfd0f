"""The grammar: what files, overrides and references become, and who set each key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import write

from openood_dream.config.merge import merge, quoted
from openood_dream.config.tree import COMMAND_LINE, Key, Merged
from openood_dream.errors import InputError

KNOWN = {"dream.outliers.sigma": Key(Any, False), "dream.args": Key(Any, True), "text": Key(str | None, False)}


def load(text: str, *overrides: str) -> Merged:
    return merge([write(text)], overrides, lambda values: KNOWN, switches=["fast"], sections=["part"])


def error(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


def files(*texts: str) -> Merged:
    return merge([write(text, f"{name}.yml") for name, text in zip("abc", texts)], (), lambda values: {})


def test_later_files_win_key_by_key():
    merged = files("optimizer: {lr: 0.1, name: sgd}\nlist: [1, 2]\n", "optimizer: {lr: 0.2}\nlist: [3]\nseed: 4\n")
    assert merged.values == {"optimizer": {"lr": 0.2, "name": "sgd"}, "list": [3], "seed": 4}
    keys = ("optimizer.lr", "optimizer.name", "seed")
    assert [merged.origins.of(key.split(".")).file for key in keys] == ["b.yml", "a.yml", "b.yml"]


def test_value_replaces_section_and_back():
    merged = files("a: {x: 1}\nb: 2\nc: {y: 3}", "a: 4\nb: {z: 5}\nc: {}")
    assert merged.values == {"a": 4, "b": {"z": 5}, "c": {}}
    assert merged.origins.of(["b"]).file == merged.origins.of(["c"]).file == "b.yml"


def test_openoods_word_takes_a_key_away():
    merged = files(
        "a: {x: 1, y: 2}\nb: 3\nc: 4", "a: _DELETE_CONFIG_\nb: _DELETE_CONFIG_\nd: _DELETE_CONFIG_", "a: {z: 5}"
    )
    assert merged.values == {"a": {"z": 5}, "c": 4}


def test_dotted_keys_are_nested_but_not_in_labels():
    merged = files("optimizer: {lr: 0.1}", "optimizer.lr: 0.2\ntrainer.args.a: 1", "benchmark: {methods: {s 0.7: [x]}}")
    assert merged.values["optimizer"] == {"lr": 0.2} and merged.values["trainer"] == {"args": {"a": 1}}
    assert merged.values["benchmark"]["methods"] == {"s 0.7": ["x"]}


def test_an_include_is_merged_once():
    write("a: 1\nb: 1", "base.yml")
    first, second = write("include: [base.yml]\na: 2"), write("include: [base.yml]\nc: 3", "b.yml")
    assert merge([first, Path(second)], (), lambda values: {}).values == {"a": 2, "b": 1, "c": 3}


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (["--a.b", "3"], 3),
        (["--a.b=3"], 3),
        (["--a.b", "-0.5"], -0.5),
        (["--a.b", "1e-3"], 1e-3),
        (["--a.b", "true"], True),
        (["--a.b", "null"], None),
        (["--a.b", "[1, x]"], [1, "x"]),
        (["--a.b", "{c: 2}"], {"c": 2}),
        (["--a.b", "'3'"], "3"),
        (["--a.b", '""'], ""),
        (["--a.b=x=y"], "x=y"),
        (["--a.b", "__import__('os')"], "__import__('os')"),
        (["--a.b", "1", "--a.b", "2"], 2),
    ],
)
def test_overrides_have_yaml_types(tokens, value):
    merged = load("a: {b: old, c: 1}", *tokens)
    assert merged.values == {"a": {"b": value, "c": 1}} and type(merged.values["a"]["b"]) is type(value)
    assert merged.origins.of(("a", "b")).file == COMMAND_LINE


def test_overrides_of_known_keys_that_no_file_sets():
    merged = load("fast: false", "--dream.outliers.sigma", "2", "--dream.args.depth=4", "--fast")
    assert merged.values == {"fast": True, "dream": {"outliers": {"sigma": 2}, "args": {"depth": 4}}}


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (["--a.b"], "a.b: no value"),
        (["--a.b", "--a.c", "1"], "a.b: no value"),
        (["--a.b="], "a.b: no value"),
        (["a.b", "1"], "expected --key.sub value, got 'a.b'"),
        (["--", "1"], "expected --key.sub value, got '--'"),
        (["--a..b", "1"], "expected names separated by single dots as a key, got 'a..b'"),
        (["--a.lrr", "1"], "a.lrr: unknown key; did you mean '--a.lr'?"),
        (["--sigma", "1"], "sigma: unknown key; did you mean '--dream.outliers.sigma'?"),
        (["--qqqqqq", "1"], "qqqqqq: unknown key"),
        (["--a.b", "[1"], "a.b: expected a YAML value, got '[1'"),
    ],
)
def test_bad_override(tokens, line):
    assert error("a: {b: 1, c: 1, lr: 1}\nfast: false", *tokens).startswith(f"command line: {line}")


@pytest.mark.parametrize("text", ["run #1", "no", "007", "a: b", "[1", "x=y", "'a'", "@b"])
def test_text_is_taken_as_it_is(text):
    assert load("a: 1", "--text", text).values["text"] == load("a: 1", f"--text={text}").values["text"] == text


def test_null_is_none_where_text_may_be_missing():
    assert load("text: a", "--text", "null").values["text"] is None


@pytest.mark.parametrize("text", ["plain", "run #1", "no", "007", "a: b", "-x", '"', "", "1e-3", "null", "ü"])
def test_quoted_text_stays_what_it_is(text):
    assert load("a: {b: 1}", "--a.b", quoted(text)).values["a"]["b"] == text


def test_whole_reference_keeps_the_type_and_follows_later_files():
    first = "n: 8\ndata: {n: '@{n}', list: ['@{n}', {m: '@{n}'}], all: '@{group}'}\ngroup: {a: '@{n}'}"
    assert files(first, "n: 9").values["data"] == {"n": 9, "list": [9, {"m": 9}], "all": {"a": 9}}
    assert load(first, "--n", "false").values["data"]["n"] is False


def test_references_inside_text():
    text = "net: {name: resnet, lr: 0.1}\ntag: \"'@{net.name}'_lr'@{net.lr}'/s'@{seed}'\"\nseed: 0\nmail: x@y.org"
    values = load(text).values
    assert (values["tag"], values["mail"]) == ("resnet_lr0.1/s0", "x@y.org")


def test_references_to_references_and_through_them():
    values = load("a: '@{b.c}'\nb: {c: \"'@{d}'!\"}\nd: '@{e.f.g}'\ne: {f: '@{h}'}\nh: {g: end}").values
    assert (values["a"], values["d"], values["e"]["f"]) == ("end!", "end", {"g": "end"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: '@{b}'\nb: '@{a}'", "a.yml: a: the reference '@{b}' leads back to itself (b -> a -> b)"),
        ("a: '@{a}'", "a.yml: a: the reference '@{a}' leads back to itself (a -> a)"),
        ("a: {b: '@{a}'}", "a.yml: a.b: the reference '@{a}' leads back to itself (a -> a)"),
        ("a: {b: '@{sed}'}\nseed: 1", "a.yml: a.b: the reference '@{sed}' names no key; did you mean '@{seed}'?"),
        ("a: {b: \"x'@{qqq}'\"}", "a.yml: a.b: the reference '@{qqq}' names no key"),
        ("a: x\nb: '@{a.c}'", "a.yml: b: the reference '@{a.c}' names no key"),
        ("a: {c: 1}\nb: \"x'@{a}'\"", "a.yml: b: expected a reference to a single value inside text"),
        ("a: 1\nb: x_@{a}", "a.yml: b: expected quotes around a reference inside text"),
    ],
)
def test_bad_reference(text, line):
    assert error(text).startswith(line)


def test_key_with_an_empty_name():
    assert error("a..b: 1").startswith("a.yml: ")


@pytest.mark.parametrize("value", ["[a]", "text", "5"])
def test_a_section_that_is_no_mapping_is_named_before_who_refers_to_it(value):
    assert error(f"part: {value}\nb: '@{{part.c}}'").startswith("a.yml: part: expected a mapping")
