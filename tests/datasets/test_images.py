"""Images as batches: what OpenOOD's preprocessors would give, decoded once, and broken ones named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import transforms
from torchvision.transforms import functional as tvf

from openood_dream.datasets import images
from openood_dream.datasets.images import ImageList, Transform, loader, random_crop, random_flip
from openood_dream.datasets.imglist import list_identity, read_imglist, write_imglist
from openood_dream.datasets.mixture import Mixture
from openood_dream.errors import InputError

SMALL = Transform(pre_size=32, image_size=32)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of pictures of many shapes and colour modes, and its list."""
    rng = np.random.default_rng()
    sizes = [(40, 40), (37, 61), (90, 33), (32, 32), (20, 25)]
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (50, 45), dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 256, (45, 50, 4), dtype=np.uint8), "RGBA").save(tmp_path / "transparent.png")
    Image.fromarray(rng.integers(0, 256, (45, 50, 3), dtype=np.uint8)).save(tmp_path / "a photo.jpg")
    names = [*(f"{i}.png" for i in range(5)), "grey.png", "transparent.png", "a photo.jpg"]
    write_imglist(tmp_path / "list.txt", [(name, i % 3) for i, name in enumerate(names)])
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> Counter[str]:
    """How often each image is decoded while the test runs."""
    counts: Counter[str] = Counter()
    read = images.read_image

    def counted(path: Path, *more) -> Image.Image:
        counts[path.name] += 1
        return read(path, *more)

    monkeypatch.setattr(images, "read_image", counted)
    return counts


def open_list(folder: Path, transform: Transform = SMALL) -> ImageList:
    return ImageList(folder / "list.txt", folder, transform, key="dataset.train.imglist_pth")


# ------------------------------------------------------------------------------------------------------------ batches

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
    opened = open_list(pictures, Transform(36, 32, normalization, interpolation))
    reference = transforms.Compose(
        [
            transforms.Resize(36, MODES[interpolation]),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    batch = next(iter(loader(opened, 8, shuffle=False)))
    for i, (name, label) in enumerate(read_imglist(pictures / "list.txt")):
        expected = reference(Image.open(pictures / name).convert("RGB"))
        assert torch.allclose(batch["data"][i], expected, atol=1e-6)
        assert torch.equal(opened[i]["data"], batch["data"][i])
        assert (batch["image_name"][i], int(batch["label"][i]), int(batch["index"][i])) == (name, label, i)


def test_one_channel_is_the_luma(pictures):
    transform = Transform(36, 32, "cifar10", channels=1)
    batch = next(iter(loader(open_list(pictures, transform), 8, shuffle=False)))["data"]
    assert batch.shape == (8, 1, 32, 32)
    for i, (name, _) in enumerate(read_imglist(pictures / "list.txt")):
        image = tvf.center_crop(tvf.resize(Image.open(pictures / name).convert("RGB"), 36), [32, 32]).convert("L")
        expected = (np.asarray(image) / 255 - 0.4734) / 0.2507  # means over the three channels
        np.testing.assert_allclose(batch[i, 0], expected, atol=0.6 / 255 / 0.25)  # mode L rounds to whole numbers


def augmented_slowly(folder: Path, index: list[int], transform: Transform) -> torch.Tensor:
    """Training images one after the other, with the random numbers of a batch drawn as ImageList does."""
    size, rows, batch = transform.image_size, read_imglist(folder / "list.txt"), []
    mode = transforms.InterpolationMode(transform.interpolation)
    for i in index:
        image = Image.open(folder / rows[i][0]).convert("RGB")
        if transform.resized_crop:
            top, left, height, width = transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
            batch.append(tvf.resized_crop(image, top, left, height, width, [size, size], mode))
        else:
            batch.append(tvf.center_crop(tvf.resize(image, transform.pre_size, mode), [size, size]))
    batch = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in batch]
    if transform.randaugment:
        change = transforms.RandAugment(*transform.randaugment, interpolation=transforms.InterpolationMode.BILINEAR)
        batch = [change(image) for image in batch]
    if transform.crop and not transform.resized_crop:
        tops, lefts = torch.randint(0, 9, (2, len(index))).tolist()
        padded = [torch.nn.functional.pad(image, (4, 4, 4, 4)) for image in batch]
        batch = [image[:, y : y + size, x : x + size] for image, y, x in zip(padded, tops, lefts)]
    if transform.flip:
        chances = torch.rand(len(index)).tolist()
        batch = [image.flip(2) if chance < 0.5 else image for image, chance in zip(batch, chances)]
    return torch.stack([(image.float() / 255 - transform.mean[0]) / transform.std[0] for image in batch])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": False},
        {"crop": False},
        {"crop": False, "flip": False},
        {"resized_crop": True},
        {"resized_crop": True, "flip": False},
        {"randaugment": (2, 14)},
        {"interpolation": "bicubic", "normalization": "cifar10"},
    ],
    ids=str,
)
def test_augmentation_equals_one_image_after_the_other(pictures, options):
    transform = Transform(36, 32, **options)
    opened = open_list(pictures, transform).augmented()
    index = [3, 0, 7, 7, 1, 2, 3]
    for seed in range(3):
        torch.manual_seed(seed)
        expected, after = augmented_slowly(pictures, index, transform), torch.rand(1)
        torch.manual_seed(seed)
        batch = opened.__getitems__(index)
        assert torch.allclose(batch["data"], expected, atol=1e-6) and batch["index"].tolist() == index
        assert torch.rand(1) == after  # as many random numbers, and no more


def test_plain_list_draws_no_random_numbers(pictures):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    open_list(pictures, Transform(36, 32, resized_crop=True, randaugment=(1, 14))).__getitems__([0, 1])
    assert torch.rand(1) == expected


@pytest.mark.parametrize("resized_crop", [True, False])
def test_without_the_flip_nothing_is_mirrored(tmp_path, resized_crop):
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    write_imglist(tmp_path / "list.txt", [("ramp.png", 0)])

    def rising(flip: bool) -> list[bool]:
        torch.manual_seed(0)
        transform = Transform(32, 32, flip=flip, crop=False, resized_crop=resized_crop)
        opened = open_list(tmp_path, transform).augmented()
        return [bool((opened[0]["data"].diff(dim=2) >= 0).all()) for _ in range(20)]

    assert all(rising(False)) and len(set(rising(True))) == 2


def test_crops_and_flips_reach_every_place(pictures):
    plain = next(open_list(pictures).raw(8))
    seen, draws = set(), torch.stack([random_flip(random_crop(plain, 4)) for _ in range(60)])
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


def test_each_image_is_cropped_at_its_own_place():
    same = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in random_crop(same, 4)}) > 20


def test_randaugment_changes_each_image_in_its_own_way(pictures):
    opened = open_list(pictures, Transform(32, 32, randaugment=(2, 14), crop=False, flip=False))
    torch.manual_seed(0)
    batch = opened.augmented().__getitems__([3] * 40)["data"]
    assert len({tuple(image.flatten().tolist()) for image in batch}) > 10
    still = opened.__getitems__([3] * 2)["data"]
    assert torch.equal(still[0], still[1])


def test_another_size_is_the_same_cut(pictures):
    opened = open_list(pictures, Transform(36, 32))
    assert opened.at_size(32) is opened
    larger = opened.at_size(48)
    assert (larger.transform.pre_size, larger.transform.image_size) == (54, 48)
    expected = open_list(pictures, Transform(54, 48)).pixels(torch.arange(8))
    assert torch.equal(larger.pixels(torch.arange(8)), expected) and next(opened.raw(8)).shape[-1] == 32
    assert larger.identity == opened.identity


def test_identity_of_a_transform_separates_test_time_from_training():
    plain, other = Transform(36, 32), Transform(36, 32, flip=False, randaugment=(1, 14))
    assert plain.test_identity == other.test_identity and plain.identity != other.identity
    assert plain.test_identity != Transform(36, 32, "cifar10").test_identity


def test_the_identity_of_a_transform_is_the_same_read_from_a_record():
    transform = Transform(36, 32, randaugment=(1, 14), mixture=Mixture(("nearest", "bilinear"), (60, 90)))
    assert json.loads(json.dumps(transform.identity)) == transform.identity


# ----------------------------------------------------------------------------------------------------------- decoding


def test_opening_and_identity_decode_nothing(pictures, decoded):
    opened = open_list(pictures)
    assert opened.identity == list_identity(pictures / "list.txt", pictures, "key")
    opened.augmented(), opened.at_size(16), loader(opened, 4, shuffle=True)
    assert not decoded and opened.cached


def test_images_are_decoded_once_for_a_list_and_its_augmented_view(pictures, decoded):
    opened = open_list(pictures)
    augmented = opened.augmented()
    opened.__getitems__([2, 2, 5])
    assert decoded == {"2.png": 1, "grey.png": 1}
    for _ in range(2):
        list(loader(augmented, 3, shuffle=True))
        list(opened.raw(5))
    assert len(decoded) == 8 and set(decoded.values()) == {1}


def test_random_resized_crops_are_decoded_each_time(pictures, decoded):
    opened = open_list(pictures, Transform(36, 32, resized_crop=True))
    augmented = opened.augmented()
    assert opened.cached and not augmented.cached
    for _ in range(2):
        augmented.__getitems__([0])
    assert decoded == {"0.png": 2}


def test_sets_too_large_for_memory_give_the_same_batches(pictures, monkeypatch):
    kept = open_list(pictures, Transform(36, 32))
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    read = open_list(pictures, Transform(36, 32))
    assert kept.cached and not read.cached and loader(kept, 5, shuffle=False, workers=1).num_workers == 0
    one, other = (next(iter(loader(opened, 5, shuffle=False, workers=w))) for opened, w in ((kept, 0), (read, 1)))
    assert torch.equal(one["data"], other["data"]) and one["image_name"] == other["image_name"]


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_missing_image_is_named_with_its_list_and_key(pictures):
    (pictures / "2.png").unlink()
    opened = open_list(pictures)
    with pytest.raises(InputError, match=r"list\.txt: image '.*/2\.png' .*dataset\.train\.imglist_pth"):
        list(opened.raw(8))


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "zeros", "pixels"])
@pytest.mark.parametrize("host", [False, True])
def test_broken_image_is_named(pictures, damage, host, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host)  # OpenOOD sets it for the whole process
    path = pictures / ("a photo.jpg" if damage == "cut" else "3.png")
    content = path.read_bytes()
    damaged = {
        "cut": content[:700],
        "text": b"<html>not found</html>",
        "empty": b"",
        "zeros": bytes(2000),
        "pixels": content[:100] + bytes(40) + content[140:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=rf"{path.name}: .*list\.txt"):
        list(open_list(pictures).raw(8))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is host


def test_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: .*8 bits"):
        images.read_image(tmp_path / "deep.png")


def test_broken_image_of_an_image_set_is_left_to_verify(tmp_path):
    (tmp_path / "zero").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "zero" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=rf"0\.png: .*openood-dream verify {tmp_path}"):
        images.read_image(tmp_path / "zero" / "0.png", "restore it")


# --------------------------------------------------------------------------------------------------- the fast recipe


def test_a_mirror_is_what_comes_into_sight():
    images = torch.randint(0, 256, (60, 3, 8, 9), dtype=torch.uint8)
    torch.manual_seed(5)
    found = random_crop(images, 2, "mirror")
    torch.manual_seed(5)
    tops, lefts = torch.randint(0, 5, (2, 60, 1))[..., 0].tolist()
    wide = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    slow = [image[:, y : y + 8, x : x + 9] for image, y, x in zip(wide, tops, lefts)]
    assert torch.equal(found, torch.stack(slow))


def test_alternate_flips_show_each_side_in_every_other_epoch(pictures):
    opened = open_list(pictures, Transform(8, 8, flip="alternate", crop=False)).augmented()
    plain = open_list(pictures, Transform(8, 8))
    both = plain.__getitems__(range(8))["data"], plain.__getitems__(range(8))["data"].flip(3)
    epochs = []
    for opened.epoch in range(4):
        seen = opened.__getitems__(range(8))["data"]
        epochs.append([torch.equal(image, mirrored) for image, mirrored in zip(seen, both[1])])
        assert all(torch.equal(image, one) or torch.equal(image, two) for image, one, two in zip(seen, *both))
    assert epochs[0] == epochs[2] and epochs[1] == epochs[3] == [not mirrored for mirrored in epochs[0]]
    assert 0 < sum(epochs[0]) < 8


def test_two_views_are_those_of_simclr(pictures):
    """As OpenOOD's preprocessor cider: each view is a crop, a mirror, a jitter and a grey of its own."""
    opened = open_list(pictures, Transform(36, 32, "cifar10", views=2)).augmented()
    torch.manual_seed(3)
    batch = opened.__getitems__([0, 1, 2])
    assert len(batch["data"]) == 2 and len(batch["label"]) == 3
    torch.manual_seed(3)
    slow = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
    )
    plain = open_list(pictures, Transform(36, 32, "cifar10")).pixels(torch.arange(3))
    for view in batch["data"]:
        expected = torch.stack([slow(image) for image in plain])
        assert torch.equal(view, opened.transform.normalize(expected))
    assert not torch.equal(*batch["data"])
    assert open_list(pictures, Transform(36, 32, views=2)).__getitems__([0])["data"].shape == (
        1,
        3,
        32,
        32,
    )  # not in tests
