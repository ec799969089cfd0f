"""A user's images: what is found, and how it is divided."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from openood_dream.datasets.folders import Found, digests, find_images, split, split_ood
from openood_dream.errors import InputError


def contents(found: Found) -> dict[str, str]:
    return {name: sha256(name.encode()).hexdigest() for name, _ in found.rows}


def many(**counts: int) -> Found:
    return Found(Path("photos"), [(f"{name}/{i}.png", name) for name, count in counts.items() for i in range(count)])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_folders_are_classes_and_other_files_are_left_out(tmp_path):
    touch(tmp_path, "great_tit/a b.JPG", "great_tit/deep/c.png", "robin/d.webp", "robin/notes.txt", ".hidden/e.png")
    found = find_images(tmp_path)
    assert found.rows == [
        ("great_tit/a b.JPG", "great tit"),
        ("great_tit/deep/c.png", "great tit"),
        ("robin/d.webp", "robin"),
    ]
    assert digests(found)["robin/d.webp"] == sha256(b"robin/d.webp").hexdigest()


def test_a_list_and_a_csv_say_the_same(tmp_path):
    (tmp_path / "all.txt").write_text("x/a b.png great_tit\nx/c.png robin\n")
    (tmp_path / "all.csv").write_text("Label,Path,size\ngreat tit,x/a b.png,3\nrobin,x/c.png,4\n")
    found = find_images(tmp_path / "all.txt")
    assert found == find_images(tmp_path / "all.csv")
    assert found == Found(tmp_path, [("x/a b.png", "great tit"), ("x/c.png", "robin")])


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "x.png\n", "a.txt:1: "),
        ("a.txt", "../x.png robin\n", "a.txt:1: "),
        ("a.txt", "\n", "a.txt: "),
        ("a.csv", "one,two\n1,2\n", "a.csv:1: "),
        ("a.csv", "file,class\nx.png,\n", "a.csv:2: "),
        ("folder/x.png", "", "x.png: "),
        ("folder/sub/x.txt", "", "folder: "),
    ],
)
def test_what_is_no_source(tmp_path, name, text, words):
    touch(tmp_path, name)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        find_images(tmp_path / name.split("/")[0])
    assert words in str(error.value)


def test_splits_are_stratified_never_overlap_and_do_not_depend_on_order():
    found = many(a=50, b=20, c=5)
    made = split(found, contents(found), 0)
    assert made == split(Found(found.root, found.rows[::-1]), contents(found), 0)
    assert made.classes == ["a", "b", "c"] and made.held_out == []
    counts = {
        name: [sum(label == wanted for _, label in rows) for wanted in range(3)] for name, rows in made.lists.items()
    }
    assert counts == {"train": [35, 14, 3], "val": [5, 2, 1], "test": [10, 4, 1]}
    files = [file for rows in made.lists.values() for file, _ in rows]
    assert sorted(files) == [name for name, _ in sorted(found.rows)]


def test_classes_are_held_out():
    found = many(**{f"class{i}": 10 for i in range(20)})
    made = split(found, contents(found), 0.2)
    assert len(made.held_out) == 4 and len(made.classes) == 16 and not set(made.held_out) & set(made.classes)
    assert made.classes[:2] == sorted(made.classes[:2], key=lambda name: int(name[5:]))  # class2 before class10
    ood = {
        part: {file.split("/")[0] for file, label in made.lists[part] if label == -1} for part in ("val_ood", "near")
    }
    assert len(ood["val_ood"]) == 1 and ood["val_ood"] | ood["near"] == set(made.held_out)
    one = split(many(a=10, b=10, c=10), contents(many(a=10, b=10, c=10)), 0.2)
    assert len(one.held_out) == 1 and (len(one.lists["val_ood"]), len(one.lists["near"])) == (2, 8)
    assert split(many(a=9, b=9), contents(many(a=9, b=9)), 0.2).held_out == []
    with pytest.raises(InputError, match="--hold-out"):
        split(many(a=9, b=9, c=9), contents(many(a=9, b=9, c=9)), 0.7)


def test_copies_are_left_out_and_contradictions_refused():
    found = many(a=10, b=10)
    same = contents(found)
    same["a/3.png"] = same["a/7.png"]
    assert sum(map(len, split(found, same, 0).lists.values())) == 19
    same["b/3.png"] = same["a/7.png"]
    with pytest.raises(InputError, match=r"a/3\.png and b/3\.png"):
        split(found, same, 0)
    with pytest.raises(InputError, match="'b' has 4"):
        split(many(a=9, b=4), contents(many(a=9, b=4)), 0)


def test_ood_images_are_not_among_the_id_ones():
    other = many(x=20)
    known = contents(other)
    lists = split_ood(other, known, [known["x/3.png"]], validate=True)
    files = [file for rows in lists.values() for file, _ in rows]
    assert len(lists["val_ood"]) == 4 and len(set(files)) == 19 and "x/3.png" not in files
    assert len(split_ood(other, known, [], validate=False)["ood"]) == 20
