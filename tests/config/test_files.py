"""Reading and finding config files: what is wrong with one is told with file, line and column."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openood_dream.config.files import layers, parse, read, shipped_configs
from openood_dream.errors import InputError
from openood_dream.reports.records import read_config


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
        ('a: "x\\e[31m"', "a.yml:1:4: the control character #x1b"),
        ('"a\\x9b": 1', "a.yml:1:1: the control character #x9b"),
        ("- a", "a.yml: expected a mapping"),
        ("# nothing", "a.yml: expected a mapping"),
        ("a: " + "[" * 5000, "a.yml:1:103: nested too deeply"),
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
    with pytest.raises(InputError, match=r"^a\.yml: expected UTF-8 text, got byte 0xff; "):
        read("a.yml")


# Each takes some lines to write, and gigabytes to hold.
BOMBS = {
    "mappings": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40)),
    "lists": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
    "texts": f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]\n",
    "commas": "a: [" + "1," * 500_000 + "]\n",
    "characters": "a: " + "x" * 3_000_000,
}


@pytest.mark.parametrize("kind", sorted(set(BOMBS) - {"commas"}) + [pytest.param("commas", marks=pytest.mark.slow)])
def test_bombs(kind):
    assert error(write(BOMBS[kind])).startswith("a.yml:")
    with pytest.raises(InputError, match=r"^a\.yml: expected a run's config in YAML"):
        read_config(Path("a.yml"))


def test_many_classes_are_no_bomb():
    names = "".join(f"- a class of a long name, {number}\n" for number in range(1000))
    assert len(read(write(f"a: &a\n{names}b: *a\nc: *a\n"))["c"]) == 1000


@pytest.mark.parametrize(
    "text", ["a: &x [*x]", "a: 2024-99-01", "[" * 5000, "a: !!int x", "a: !!python/object/new:x 1", "- 1", "", "\x07"]
)
def test_config_of_a_run(text):
    with pytest.raises(InputError, match=r"^a\.yml: expected a run's config.*; restore it"):
        read_config(Path(write(text)))


@pytest.mark.parametrize("reader", [read, lambda file: read_config(Path(file))])
def test_pipe_is_not_waited_for(reader):
    os.mkfifo("a.yml")
    with pytest.raises(InputError, match=r"^a\.yml: expected a regular file"):
        reader("a.yml")


LINES = st.lists(
    st.sampled_from(
        [
            "a: ",
            "- ",
            "&x ",
            "*x",
            "{",
            "}",
            "[",
            "]",
            "<<: ",
            "\n",
            "  ",
            "1",
            "!!int ",
            "!!set ",
            "!!python/object/new:a ",
            "? ",
            "|",
            '"',
            "\\e",
            "2024-99-01",
            "@{a}",
            "1e99",
            "é",
        ]
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(parts=LINES)
def test_fuzz(parts):
    file = write("".join(parts))
    for reader in (read, lambda file: read_config(Path(file))):
        try:
            assert isinstance(reader(file), dict)
        except InputError as error:
            assert str(error).startswith("a.yml:")
