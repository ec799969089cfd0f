"""Sections: frozen, and each mistake is a line with its file and key."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from openood_dream.config.schema import HostSection, Section, check, phrase, schema_keys, validated
from openood_dream.config.tree import Origins
from openood_dream.errors import InputError


class Inner(Section):
    size: int = Field(3, ge=1, multiple_of=3)
    args: dict[str, Any] = {}


class Outer(Section):
    section = "outer"

    kind: Literal["a", "b"] = "a"
    rate: float | Literal["auto"] = Field(0.5, gt=0)
    inner: Inner = Field(default_factory=Inner)


class Host(HostSection):
    HOST_KEYS = ("more", "warm")

    name: str


def origins() -> Origins:
    found = Origins()
    found.set(("outer", "inner", "size"), "b.yml")
    found.set(("outer", "rate"), "a.yml")
    return found


def test_sections_are_frozen_and_know_their_keys():
    section = validated(Outer, {})
    with pytest.raises(ValidationError):
        section.kind = "b"
    with pytest.raises(AttributeError):
        section.missing  # noqa: B018
    with pytest.raises(AttributeError):
        validated(Host, {"name": "x", "more": 1}).missing  # noqa: B018
    assert validated(Host, {"name": "x", "more": 1}).more == 1


def test_where_a_key_stands():
    section = validated(Outer, {"inner": {"size": 6}}, ("outer",), origins())
    assert str(section.inner.error("size", "too large")) == "b.yml: outer.inner.size: too large"
    assert str(section.error("", "wrong")).endswith("outer: wrong")
    assert str(Outer().error("rate", "wrong")) == "outer.rate: wrong"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda section: pickle.loads(pickle.dumps(section))])
def test_copies_are_equal_and_know_their_file(clone):
    section = validated(Outer, {"inner": {"size": 6}}, ("outer",), origins())
    assert clone(section) == section and clone(section).inner.where("size") == "b.yml: outer.inner.size"
    assert section == validated(Outer, {"inner": {"size": 6}}) != Outer()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"inner": {"size": 4}}, "b.yml: outer.inner.size: expected an integer >= 1 and a multiple of 3, got 4"),
        ({"rate": 0}, "a.yml: outer.rate: expected a number > 0 or 'auto', got 0"),
        ({"rate": float("nan")}, "a.yml: outer.rate: expected a number > 0 or 'auto', got nan"),
        ({"kind": "c"}, "outer.kind: expected 'a' or 'b', got 'c'"),
        ({"kin": "a"}, "outer.kin: unknown key; did you mean 'kind'?"),
        ({"zzzz": 1}, "outer.zzzz: unknown key; the keys of outer are kind, rate, inner"),
        ({"inner": 5}, "outer.inner: expected a mapping of settings, got 5"),
        ({"inner": {"size": True}}, "b.yml: outer.inner.size: expected"),
    ],
)
def test_bad_value(data, line):
    with pytest.raises(InputError) as caught:
        validated(Outer, data, ("outer",), origins())
    assert line in str(caught.value)


def test_every_problem_is_found_in_the_order_of_the_files():
    _, problems = check(Outer, {"rate": 0, "inner": {"size": 4}, "x": 1}, ("outer",), origins())
    assert len(problems) == 3
    with pytest.raises(InputError, match=r"^b\.yml: outer\.inner\.size: .*\(and 1 more\)$"):
        validated(Outer, {"rate": 0, "inner": {"size": 4}}, ("outer",), origins())


def test_keys_of_openoods_sections():
    with pytest.raises(InputError, match="host.mroe: unknown key; did you mean 'more'"):
        validated(Host, {"name": "x", "mroe": 1}, ("host",))
    found = validated(Host, {"name": "x", "more": 1, "num_gpus": 2}, ("host",))
    assert found.unread() == ["more"]


def test_keys_of_other_plugins_are_let_through_where_openood_runs():
    host = Origins()
    host.lenient = True
    assert validated(Host, {"name": "x", "theirs": 1}, ("host",), host).theirs == 1


def test_keys_of_a_model():
    assert {key: of.free for key, of in schema_keys(Outer)} == {
        "kind": False,
        "rate": False,
        "inner": False,
        "inner.size": False,
        "inner.args": True,
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [(bool, "true or false"), (str | None, "text or null"), (list[int], "a list, each entry an integer")],
)
def test_types_in_words(kind, words):
    assert phrase(kind) == words
