"""Class names: from a list or a file, one for each class."""

from __future__ import annotations

import os

import pytest

from openood_dream.datasets.classnames import class_names
from openood_dream.datasets.digits import DIGIT_NAMES
from openood_dream.errors import InputError


def error(text: str) -> InputError:
    return InputError(f"birds.yml: dream.class_names: {text}")


def test_from_a_list_or_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffzero\none\n\n two \nthree\nfour\r\nfive\n".encode())
    assert class_names(str(file), 6, error) == class_names(DIGIT_NAMES, 6, error) == list(DIGIT_NAMES)


def test_from_the_shipped_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(class_names("classnames/imagenet200.txt", 200, error)) == 200


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a", "b"], "2 names for 6 classes"),
        ("{tmp}/none.txt", r"no such file '.*none\.txt'"),
        ("{tmp}", "expected a file with one class name a line"),
        ("{tmp}/latin.txt", r"latin\.txt: .*0xf6"),
        ("{tmp}/twice.txt", r"twice\.txt: .*'a' 2 times"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, names, expected):
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    names = names.format(tmp=tmp_path) if isinstance(names, str) else names
    with pytest.raises(InputError, match=rf"birds\.yml: dream\.class_names: .*{expected}"):
        class_names(names, 6, error)


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(InputError, match=r"names\.txt: expected a file with one class name a line"):
        class_names(str(tmp_path / "names.txt"), 2, InputError)
