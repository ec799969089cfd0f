"""Reading and finding config files: what is wrong with one is told with file, line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write

from openood_dream.config.files import layers, parse, read, shipped_configs
from openood_dream.errors import InputError


def error(name: str) -> str:
    with pytest.raises(InputError) as caught:
        list(layers(name, set()))
    return str(caught.value)


def test_shipped_configs():
    assert shipped_configs().parts[-2:] == ("configs", "openood")


def test_scientific_notation_is_a_number():
    text = "a: 1e-3\nb: 1.5e3\nc: -2E+2\nd: '1e-3'\ne: e10"
    assert parse(text) == {"a": 1e-3, "b": 1500, "c": -200, "d": "1e-3", "e": "e10"}


def test_aliases_and_merge_keys():
    assert parse("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_includes_come_before_their_file():
    write("a: 1", "deep/base.yml")
    write("include: [base.yml, datasets/digits.yml]\nb: 2", "deep/middle.yml")
    found = list(layers(write("include: [deep/middle.yml]\nc: 3"), set()))
    assert [data for _, data in found] == [{"a": 1}, {"from": "datasets/digits.yml"}, {"b": 2}, {"c": 3}]
    assert [Path(file).name for file, _ in found] == ["base.yml", "digits.yml", "middle.yml", "a.yml"]


def test_own_file_before_shipped_one():
    assert next(layers("datasets/cifar10.yml", set()))[1]["from"] == "datasets/cifar10.yml"
    write("from: here", "datasets/cifar10.yml")
    assert next(layers("datasets/cifar10.yml", set()))[1]["from"] == "here"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("nowhere.yml", None),
        ("datasets/digit.yml", "datasets/digits.yml"),
        ("/x/y/z/digts.yml", "datasets/digits.yml"),
        ("mine/netwrk.yml", "mine/network.yml"),
    ],
)
def test_missing_file(name, near):
    write("{}", "mine/network.yml")
    found = error(name)
    assert found.startswith(f"{name}: no such file")
    assert found.endswith(f"did you mean {near!r}?") if near else "did you mean" not in found


@pytest.mark.parametrize("name", ["datasets", "."])
def test_folder_in_the_place_of_a_file(name):
    assert error(name).startswith(f"{name}: expected a file")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: c: d", "a.yml:2:5: "),
        ("a: [1, 2", "a.yml:1:9: "),
        ("a: @{b}", "a.yml:1:4: "),
        ("a: 1\nb: \x07", "a.yml:2:4: the character #x0007 "),
        ("a: 1\nb: 2\na: 3", "a.yml:3:1: the key 'a' is given twice, first on line 1"),
        ("a:\n  lr: 1\n  lr: 1", "a.yml:3:3: the key 'lr' is given twice, first on line 2"),
        ("a: [{b: 1, b: 2}]", "a.yml:1:12: the key 'b' is given twice, first on line 1"),
        ("on: 1", "a.yml:1:1: expected text as a key, got 'on'"),
        ("a: &x [*x]", "a.yml:1:8: "),
        ("&a {<<: *a}", "a.yml:1:9: "),
        ("a: 2024-99-01", "a.yml:1:4: "),
        ("a: !!python/name:os.system x", "a.yml:1:4: could not determine a constructor"),
        ("a: 99999999999999999999", "a.yml:1:4: "),
        ("- a", "a.yml: expected a mapping"),
        ("# nothing", "a.yml: expected a mapping"),
        ("a: " + "[" * 5000, "a.yml: nested too deeply"),
        ("include: b.yml", "a.yml: include: expected a list"),
        ("include: [1]", "a.yml: include: expected a list"),
        ("include: [nowhere.yml]", "a.yml: include: nowhere.yml: no such file"),
        ("include: [a.yml]", "a.yml: include: a.yml leads back to itself (a.yml -> a.yml)"),
    ],
)
def test_malformed_file(text, place):
    assert error(write(text)).startswith(place)


def test_cycle_of_includes():
    write("include: [../a.yml]", "sub/b.yml")
    assert error(write("include: [sub/b.yml]")).endswith("(a.yml -> sub/b.yml -> sub/../a.yml)")


def test_no_text_file():
    Path("a.yml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"^a\.yml: expected UTF-8 text, got byte 0xff$"):
        read("a.yml")
