"""The digits benchmark is honest: each set holds what it says, and no near-OOD class is in any other."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from openood_dream.datasets.digits import DIGIT_SETS, SHIFTED, make_digits
from openood_dream.datasets.imglist import read_imglist
from openood_dream.errors import InputError

Members = list[tuple[np.ndarray, int]]


@pytest.fixture(scope="module")
def sets(digits) -> dict[str, Members]:
    """The images and labels of each set."""

    def members(name: str) -> Members:
        rows = read_imglist(digits / "benchmark_imglist" / "digits" / f"{name}.txt")
        return [(np.asarray(Image.open(digits / "images_classic" / file)), label) for file, label in rows]

    return {name: members(name) for name in DIGIT_SETS}


@pytest.fixture(scope="module")
def sources() -> dict[bytes, set[int]]:
    """The 32x32 bytes of every glyph of scikit-learn, by an enlargement of our own, with the indices that look so."""
    glyphs: dict[bytes, set[int]] = {}
    for index, glyph in enumerate(load_digits().images):
        image = Image.fromarray(np.uint8(np.round(glyph / 16 * 255))).resize((32, 32), Image.Resampling.BICUBIC)
        glyphs.setdefault(np.asarray(image.convert("RGB")).tobytes(), set()).add(index)
    return glyphs


def tree(root: Path) -> dict[str, str]:
    """The hash of every file."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_seed_decides_every_byte(tmp_path, digits):
    make_digits(tmp_path / "same", seed=0)
    assert tree(tmp_path / "same") == tree(digits)
    make_digits(tmp_path / "other", seed=1)
    assert tree(tmp_path / "other") != tree(digits)


def test_damaged_files_are_made_again(tmp_path, digits):
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    images = root / "images_classic" / "digits" / "test" / "zero"
    mine, gone = (root / "benchmark_imglist" / "digits" / name for name in ("val.txt", "test.txt"))
    mine.write_text("digits/val/zero/0000.png 0\n")
    gone.unlink()
    paths = sorted(images.iterdir())
    paths[0].unlink()
    paths[1].write_bytes(b"")
    os.truncate(paths[2], 99)
    before, expected = paths[3].stat().st_mtime_ns, tree(digits)
    make_digits(root)
    changed = {file for file, digest in tree(root).items() if expected.get(file) != digest}
    assert changed == {"benchmark_imglist/digits/val.txt"} and paths[3].stat().st_mtime_ns == before


def test_written_once_and_another_seed_is_refused(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    make_digits(digits)
    assert before == {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    with pytest.raises(InputError, match=rf"{digits}: .*seed 0, not 1"):
        make_digits(digits, seed=1)


def test_interrupted_writing_is_done_again(tmp_path, digits):
    (tmp_path / "images_classic/digits/train/zero").mkdir(parents=True)
    (tmp_path / "images_classic/digits/train/zero/0000.png").write_bytes(b"half an image")
    make_digits(tmp_path)
    assert tree(tmp_path) == tree(digits)


@pytest.mark.parametrize("name", SHIFTED)
def test_shifted_sets_are_changed_test_digits_with_their_labels(sets, name):
    assert [label for _, label in sets[name]] == [label for _, label in sets["test"]]
    for (image, _), (plain, _) in zip(sets[name], sets["test"], strict=True):
        gap = np.abs(image.astype(float) - plain).mean()
        assert 10 < gap < 130


def test_pixel_noise_is_on_training_digits(sets):
    noisy = np.stack([image for image, _ in sets["train_pixel_noise"]]).astype(float)
    plain = np.stack([image for image, _ in sets["train"]]).astype(float)
    assert 30 < np.abs(noisy - plain).mean() < 120


@pytest.mark.parametrize("name", ["test_flower", "test_scrambled"])
def test_far_sets_have_the_grey_values_of_digits(sets, name):
    """Neither brightness nor contrast tells them from ID images."""
    far, id_ = (np.stack([image for image, _ in sets[which]]).astype(float) for which in (name, "test"))
    assert abs(far.mean() - id_.mean()) < 5
    assert abs(far.std((1, 2, 3)).mean() / id_.std((1, 2, 3)).mean() - 1) < 0.2
    assert len({image.tobytes() for image, _ in sets[name]}) == 400


def test_all_images_are_small_rgb(sets):
    found = {(image.shape, image.dtype.name) for rows in sets.values() for image, _ in rows}
    assert found == {((32, 32, 3), "uint8")}


def test_labels_are_those_of_scikit_learn(sets, sources):
    target = load_digits().target
    for name in ("train", "val", "test"):
        for image, label in sets[name]:
            assert label in {target[i] for i in sources[image.tobytes()]}


def test_id_classes_are_split_70_10_20_without_overlap(sets):
    target, used = load_digits().target, []
    for label in range(6):
        total = int((target == label).sum())
        counts = [sum(1 for _, of in sets[name] if of == label) for name in ("train", "val", "test")]
        assert sum(counts) == total and np.allclose(np.array(counts) / total, [0.7, 0.1, 0.2], atol=0.02)
    for name in ("train", "val", "test"):
        used.append({image.tobytes() for image, _ in sets[name]})
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]


def test_near_ood_is_all_of_six_to_nine(sets, sources):
    target = load_digits().target
    found = sorted(i for image, _ in sets["test_near_digits"] for i in sources[image.tobytes()])
    assert found == np.flatnonzero(target >= 6).tolist()


def test_no_near_ood_digit_is_in_another_set(sets):
    near = {image.tobytes() for image, _ in sets["test_near_digits"]}
    for name in set(DIGIT_SETS) - {"test_near_digits"}:
        for image, _ in sets[name]:
            turns = {np.ascontiguousarray(np.rot90(image, turn)).tobytes() for turn in range(4)}
            assert not turns & near, name


def test_auxiliary_and_validation_outliers_come_from_id_digits_and_photos(sets):
    train = {image.tobytes() for image, _ in sets["train"]}
    val = {image.tobytes() for image, _ in sets["val"]}
    for image, _ in sets["val_turned"]:
        turned = {np.ascontiguousarray(np.rot90(image, turn)).tobytes() for turn in (1, 3)}
        assert turned & val and image.tobytes() not in val
    blends = [image for image, _ in sets["train_aux"]][400:]
    stack = np.stack([np.frombuffer(one, np.uint8).reshape(32, 32, 3) for one in train])
    for blend in blends[::40]:
        # the lighter of two training digits: those that are nowhere lighter than the blend make it up
        below = stack[(stack <= blend).all((1, 2, 3))]
        assert len(below) and (below.max(0) == blend).all()
    assert len(blends) == 400


def test_outliers_have_label_minus_one(sets):
    for name in set(DIGIT_SETS) - {"train", "val", "test", *SHIFTED}:
        assert {label for _, label in sets[name]} == {-1}, name
