"""Images, lists and batches: the digits benchmark is honest, and batches are what OpenOOD's preprocessor would give."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from sklearn.datasets import load_digits
from torchvision import transforms

from openood_dream import data, store
from openood_dream.config import InputError

SETS = list(data.DIGIT_SETS)


def members(root: Path, name: str) -> list[tuple[np.ndarray, int]]:
    rows = store.read_imglist(root / "benchmark_imglist" / "digits" / f"{name}.txt")
    return [(np.asarray(Image.open(root / "images_classic" / file)), label) for file, label in rows]


@pytest.fixture(scope="module")
def sets(digits) -> dict[str, list[tuple[np.ndarray, int]]]:
    return {name: members(digits, name) for name in SETS}


@pytest.fixture(scope="module")
def sources() -> dict[bytes, set[int]]:
    """The 32x32 bytes of every glyph of scikit-learn, by an enlargement of our own, with the indices that look so."""
    glyphs: dict[bytes, set[int]] = {}
    for index, glyph in enumerate(load_digits().images):
        image = Image.fromarray(np.uint8(np.round(glyph / 16 * 255))).resize((32, 32), Image.Resampling.BICUBIC)
        glyphs.setdefault(np.asarray(image.convert("RGB")).tobytes(), set()).add(index)
    return glyphs


# ------------------------------------------------------------------------------------------------ the digits benchmark


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_seed_decides_every_byte_of_the_benchmark(tmp_path, digits):
    data.make_digits(tmp_path / "same", seed=0)
    assert tree(tmp_path / "same") == tree(digits)
    data.make_digits(tmp_path / "other", seed=1)
    assert tree(tmp_path / "other") != tree(digits)


def test_the_benchmark_is_written_once_and_another_seed_is_refused(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    data.make_digits(digits)
    assert before == {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    with pytest.raises(InputError, match=r"holds the digits of seed 0, not 1; choose another data_root"):
        data.make_digits(digits, seed=1)


def test_an_interrupted_writing_is_done_again(tmp_path, digits):
    (tmp_path / "images_classic/digits/train/zero").mkdir(parents=True)
    (tmp_path / "images_classic/digits/train/zero/0000.png").write_bytes(b"half an image")
    data.make_digits(tmp_path)
    assert tree(tmp_path) == tree(digits)


def test_a_folder_of_an_earlier_version_gets_what_it_lacks_and_keeps_the_rest(tmp_path, digits):
    old = tmp_path / "old"
    shutil.copytree(digits, old)
    lists = old / "benchmark_imglist" / "digits"
    manifest = json.loads((lists / "manifest.json").read_text())
    for name in (*data.SHIFTED, "train_pixel_noise"):
        shutil.rmtree(old / "images_classic" / "digits" / name)
        (lists / f"{name}.txt").unlink()
        del manifest["images"][name]
    store.write_json(lists / "manifest.json", manifest)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*.png")}
    data.make_digits(old)
    assert tree(old) == tree(digits)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in old.rglob("*.png")}.items()


@pytest.mark.parametrize("name", data.SHIFTED)
def test_shifted_sets_are_the_test_digits_with_their_labels_and_look_different(sets, name):
    assert [label for _, label in sets[name]] == [label for _, label in sets["test"]]
    for (image, _), (plain, _) in zip(sets[name], sets["test"], strict=True):
        gap = np.abs(image.astype(float) - plain).mean()
        assert 10 < gap < 130


def test_pixel_noise_is_on_training_digits_and_labelled_as_outliers(sets):
    assert {label for _, label in sets["train_pixel_noise"]} == {-1}
    noisy = np.stack([image for image, _ in sets["train_pixel_noise"]]).astype(float)
    plain = np.stack([image for image, _ in sets["train"]]).astype(float)
    assert 30 < np.abs(noisy - plain).mean() < 120


def test_all_images_are_small_rgb(sets):
    shapes = {image.shape for rows in sets.values() for image, _ in rows}
    assert shapes == {(32, 32, 3)} and {image.dtype for rows in sets.values() for image, _ in rows} == {
        np.dtype("uint8")
    }


def test_labels_are_those_of_scikit_learn(sets, sources):
    target = load_digits().target
    for name in ("train", "val", "test"):
        for image, label in sets[name]:
            assert label in {target[i] for i in sources[image.tobytes()]}


def test_id_images_are_split_70_10_20_within_each_class_and_none_is_in_two_splits(sets, sources):
    target, used = load_digits().target, []
    for label in range(6):
        total = int((target == label).sum())
        counts = [sum(1 for _, of in sets[name] if of == label) for name in ("train", "val", "test")]
        assert sum(counts) == total and np.allclose(np.array(counts) / total, [0.7, 0.1, 0.2], atol=0.02)
    for name in ("train", "val", "test"):
        used.append({image.tobytes() for image, _ in sets[name]})
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]


def test_near_ood_is_all_of_six_to_nine_and_nothing_else(sets, sources):
    target = load_digits().target
    found = sorted(i for image, _ in sets["test_near_digits"] for i in sources[image.tobytes()])
    assert found == np.flatnonzero(target >= 6).tolist()


def test_no_near_ood_digit_is_in_training_validation_or_another_test_set(sets, sources):
    near = {image.tobytes() for image, _ in sets["test_near_digits"]}
    for name in set(SETS) - {"test_near_digits"}:
        for image, _ in sets[name]:
            turns = {np.ascontiguousarray(np.rot90(image, turn)).tobytes() for turn in range(4)}
            assert not turns & near, name


def test_auxiliary_outliers_and_ood_validation_come_from_id_digits_and_photos_alone(sets):
    train = {image.tobytes() for image, _ in sets["train"]}
    val = {image.tobytes() for image, _ in sets["val"]}
    for image, _ in sets["val_turned"]:
        turned = {np.ascontiguousarray(np.rot90(image, turn)).tobytes() for turn in (1, 3)}
        assert turned & val and image.tobytes() not in val
    blends = [image for image, _ in sets["train_aux"] if (image[..., 0] == image[..., 1]).all()]
    stack = np.stack([np.frombuffer(one, np.uint8).reshape(32, 32, 3) for one in train])
    for blend in blends[::40]:
        # the lighter of two training digits: those that are nowhere lighter than the blend make it up
        below = stack[(stack <= blend).all((1, 2, 3))]
        assert len(below) and (below.max(0) == blend).all()
    assert len(blends) == len(sets["train_aux"]) / 2


def test_outliers_have_label_minus_one(sets):
    for name in set(SETS) - {"train", "val", "test", *data.SHIFTED}:
        assert {label for _, label in sets[name]} == {-1}, name


def test_ensure_writes_what_the_config_names_and_names_what_it_does_not_know(tmp_path, tiny, digits):
    config = tiny.config("--data_root", str(tmp_path / "new"))
    data.ensure(config)
    assert tree(tmp_path / "new") == tree(digits)
    with pytest.raises(
        InputError, match=r"command line: dataset\.make: unknown benchmark 'digitz'; expected one of digits"
    ):
        data.ensure(tiny.config("--dataset.make", "digitz"))


# ---------------------------------------------------------------------------------------------------------- transforms


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of pictures of many shapes and colour modes, and its imglist."""
    rng = np.random.default_rng()
    sizes = [(40, 40), (37, 61), (90, 33), (32, 32), (20, 25)]
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (50, 45), dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 256, (45, 50, 4), dtype=np.uint8), "RGBA").save(tmp_path / "transparent.png")
    Image.fromarray(rng.integers(0, 256, (45, 50, 3), dtype=np.uint8)).save(tmp_path / "a photo.jpg")
    names = [*(f"{i}.png" for i in range(5)), "grey.png", "transparent.png", "a photo.jpg"]
    store.write_imglist(tmp_path / "list.txt", [(name, i % 3) for i, name in enumerate(names)])
    return tmp_path


MODES = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(
    "normalization, mean, std",
    [
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("something", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
def test_batches_equal_torchvision_image_by_image(pictures, interpolation, normalization, mean, std):
    images = data.ImageList(
        pictures / "list.txt",
        pictures,
        pre_size=36,
        image_size=32,
        normalization=normalization,
        interpolation=interpolation,
    )
    reference = transforms.Compose(
        [
            transforms.Resize(36, MODES[interpolation]),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    batch = next(iter(data.loader(images, 8, shuffle=False)))
    for i, (name, label) in enumerate(store.read_imglist(pictures / "list.txt")):
        expected = reference(Image.open(pictures / name).convert("RGB"))
        assert torch.allclose(batch["data"][i], expected, atol=1e-6)
        assert torch.equal(images[i]["data"], batch["data"][i])
        assert (batch["image_name"][i], int(batch["label"][i]), int(batch["index"][i])) == (name, label, i)


def augmented(folder: Path, seed: int, **options) -> torch.Tensor:
    images = data.ImageList(
        folder / "list.txt", folder, **{"pre_size": 32, "image_size": 32, "augment": True} | options
    )
    torch.manual_seed(seed)
    return images.__getitems__(range(len(images)))["data"]


def test_augmentation_is_random_and_seeded(pictures):
    plain = augmented(pictures, 0, augment=False)
    for options in ({}, {"resized_crop": True}):
        first, second, other = (augmented(pictures, seed, **options) for seed in (0, 0, 1))
        assert torch.equal(first, second) and not torch.equal(first, other) and not torch.equal(first, plain)
        assert first.shape == plain.shape


@pytest.mark.parametrize("resized_crop", [True, False])
def test_without_the_flip_nothing_is_mirrored(tmp_path, resized_crop):
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    store.write_imglist(tmp_path / "list.txt", [("ramp.png", 0)])

    def rising(flip: bool) -> list[bool]:
        torch.manual_seed(0)
        options = {"augment": True, "crop": False, "flip": flip, "resized_crop": resized_crop}
        images = data.ImageList(tmp_path / "list.txt", tmp_path, pre_size=32, image_size=32, **options)
        return [bool((images[0]["data"].diff(dim=2) >= 0).all()) for _ in range(20)]

    assert all(rising(False)) and len(set(rising(True))) == 2


def test_an_augmented_image_is_the_padded_one_flipped_or_not_and_cropped_somewhere(pictures):
    plain = data.ImageList(pictures / "list.txt", pictures, pre_size=32, image_size=32).pixels
    seen, draws = set(), torch.stack([data.random_flip(data.random_crop(plain, 4)) for _ in range(60)])
    for i, image in enumerate(plain):
        padded = torch.nn.functional.pad(image, (4,) * 4)
        places = {}
        for top in range(9):
            for left in range(9):
                window = padded[:, top : top + 32, left : left + 32]
                places[window.numpy().tobytes()] = (top, left, False)
                places[window.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
        seen |= {places[draw[i].contiguous().numpy().tobytes()] for draw in draws}  # KeyError: not such a window
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_flips_can_be_turned_off_where_they_change_the_class(pictures):
    images = data.ImageList(pictures / "list.txt", pictures, pre_size=32, image_size=32, augment=True, flip=False)
    images.pixels = torch.zeros_like(images.pixels)
    images.pixels[..., 10, 4:8] = 255  # left of the middle by more than a crop can shift it
    for _ in range(20):
        batch = images.__getitems__(range(len(images)))["data"]
        assert (batch[..., 16:] < 0).all() and (batch[..., :16] > 0).any()


def test_each_image_of_a_batch_is_cropped_at_its_own_place():
    same = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in data.random_crop(same, 4)}) > 20


def test_sets_too_large_for_memory_are_decoded_when_asked_for_and_give_the_same_batches(pictures, monkeypatch):
    options = {"pre_size": 36, "image_size": 32}
    kept = data.ImageList(pictures / "list.txt", pictures, **options)
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    read = data.ImageList(pictures / "list.txt", pictures, **options)
    assert kept.pixels is not None and read.pixels is None
    one, other = (next(iter(data.loader(images, 5, shuffle=False, workers=w))) for images, w in ((kept, 0), (read, 1)))
    assert torch.equal(one["data"], other["data"]) and one["image_name"] == other["image_name"]


def test_loaders_shuffle_for_training_by_the_seed_and_never_for_tests(tiny):
    def order(split: str, augment: bool, seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([batch["index"] for batch in data.id_loader(tiny.config(), split, augment=augment)]).tolist()

    count = len(order("train", False, 0))
    assert order("train", False, 0) == list(range(count))
    assert order("train", True, 0) == order("train", True, 0) != order("train", True, 1)
    assert sorted(order("train", True, 0)) == list(range(count))


def test_ood_sets_come_group_by_group_as_the_config_lists_them(tiny):
    config = tiny.config()
    found = [(*which, len(data.ood_loader(config, *which).dataset)) for which in data.ood_sets(config)]
    assert found == [("nearood", "near_digits", 714), ("farood", "flower", 400), ("farood", "noise", 400)]
    assert len(data.ood_loader(config, "val").dataset) == 144


# ----------------------------------------------------------------------------------------------------------- mistakes


def open_list(folder: Path, name: str = "list.txt") -> data.ImageList:
    return data.ImageList(folder / name, folder, pre_size=32, image_size=32, key="dataset.train.imglist_pth")


def test_a_missing_image_is_named_with_its_list_and_key(pictures):
    (pictures / "2.png").unlink()
    with pytest.raises(InputError, match=r"list\.txt: image '.*/2\.png' is not there \(dataset\.train\.imglist_pth\)"):
        open_list(pictures)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "zeros"])
@pytest.mark.parametrize("host", [False, True])
def test_a_broken_image_is_named(pictures, damage, host, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host)  # OpenOOD sets it for the whole process
    path = pictures / "a photo.jpg" if damage == "cut" else pictures / "1.png"
    content = {"cut": path.read_bytes()[:700], "text": b"<html>not found</html>", "empty": b"", "zeros": bytes(2000)}
    path.write_bytes(content[damage])
    with pytest.raises(InputError, match=rf"{path.name}: broken image .*restore it or take it from .*list\.txt"):
        open_list(pictures)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is host


def test_a_png_with_damaged_pixels_is_named(pictures):
    content = bytearray((pictures / "3.png").read_bytes())
    content[100:140] = bytes(40)
    (pictures / "3.png").write_bytes(content)
    with pytest.raises(InputError, match=r"3\.png: broken image"):
        open_list(pictures)


@pytest.mark.parametrize("label", [6, -1])
def test_a_label_that_is_no_class_is_named(tmp_path, tiny, digits, label):
    rows = store.read_imglist(digits / "benchmark_imglist/digits/train.txt")[:20]
    store.write_imglist(tmp_path / "bad.txt", [*rows, (rows[0][0], label)])
    config = tiny.config("--dataset.train.imglist_pth", str(tmp_path / "bad.txt"))
    with pytest.raises(InputError, match=rf"bad\.txt: label {label} does not fit; expected labels 0 to 5"):
        data.id_loader(config, "train")


def test_a_split_without_a_path_is_named(tiny):
    with pytest.raises(InputError, match=r"command line: dataset\.train\.data_dir: expected a path, got 3"):
        data.id_loader(tiny.config("--dataset.train.data_dir", "3"), "train")
    with pytest.raises(InputError, match=r"dataset\.oe: missing; expected imglist_pth and data_dir"):
        data.id_loader(tiny.config(), "oe")


def test_class_names_come_from_a_list_or_a_file_and_fit_the_labels(tmp_path, tiny):
    file = tmp_path / "names.txt"
    file.write_text("zero\none\n\n two \nthree\nfour\r\nfive\n")
    assert data.class_names(tiny.config("--dream.class_names", str(file))) == list(data.DIGIT_NAMES)
    assert data.class_names(tiny.config()) == list(data.DIGIT_NAMES)
    with pytest.raises(InputError, match=r"dream\.class_names: 2 names for 6 classes"):
        data.class_names(tiny.config("--dream.class_names", "[a, b]"))
    with pytest.raises(InputError, match=r"dream\.class_names: no such file '.*none\.txt'"):
        data.class_names(tiny.config("--dream.class_names", str(tmp_path / "none.txt")))


# --------------------------------------------------------------------------------------------------------- RandAugment


def randaugmented(tiny, *overrides: str) -> data.ImageList:
    config = tiny.config(*overrides, layers=["preprocessors/randaugment.yml"])
    return data.id_loader(config, "train", augment=True).dataset


def test_randaugment_changes_each_training_image_in_its_own_way(tiny, monkeypatch):
    monkeypatch.setattr(data, "random_crop", lambda pixels, padding: pixels)
    images, plain = randaugmented(tiny, "--preprocessor.n", "2"), data.id_loader(tiny.config(), "train").dataset
    torch.manual_seed(0)
    one, other, still = (dataset.__getitems__([3] * 40)["data"] for dataset in (images, images, plain))
    assert len({tuple(image.flatten().tolist()) for image in one}) > 10 and not torch.equal(one, other)
    assert torch.equal(still[0], still[1]) and one.shape == still.shape


def test_other_splits_are_never_changed_by_randaugment(tiny):
    config = tiny.config(layers=["preprocessors/randaugment.yml"])
    assert data.id_loader(config, "val").dataset.randaugment is None


@pytest.mark.parametrize("key, value", [("n", "0"), ("n", "two"), ("m", "31"), ("m", "1.5")])
def test_randaugment_with_impossible_numbers_is_named(tiny, key, value):
    with pytest.raises(InputError, match=rf"preprocessor\.{key}: expected an integer"):
        randaugmented(tiny, f"--preprocessor.{key}", value)
