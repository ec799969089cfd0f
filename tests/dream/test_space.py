"""Phase 1: the image encoder learns to point at the anchors of the class names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Tiny

from openood_dream.dream import space
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.chain import Dream
from openood_dream.dream.space import cosine_logits, first_per_class, load_encoder, load_space
from openood_dream.errors import InputError


def encoder_of(dream: Dream) -> torch.nn.Module:
    return load_encoder(dream.space, dream.settings.space, 16, 16)


def test_cosine_logits():
    embeddings, targets = torch.randn(5, 8), 0.4 * torch.randn(3, 8)
    found = cosine_logits(embeddings, targets, 0.1)
    for i in range(5):
        for j in range(3):
            expected = torch.cosine_similarity(embeddings[i], targets[j], dim=0) / 0.1
            assert found[i, j] == pytest.approx(expected.item(), abs=1e-5)


def test_lengths_do_not_matter():
    embeddings, targets = torch.randn(5, 8), torch.randn(3, 8)
    found = cosine_logits(7 * embeddings, targets * torch.tensor([[0.1], [1], [30]]), 0.1)
    assert torch.allclose(found, cosine_logits(embeddings, targets, 0.1), atol=1e-5)


def test_encoder_learns(dream: Dream):
    manifest = dream.space.manifest
    assert manifest["val_accuracy"] > 50  # chance is 17 %
    assert len(manifest["losses"]) == 10 and manifest["losses"][-1] < 0.7 * manifest["losses"][0]


def test_accuracy_of_the_saved_encoder(dream: Dream):
    targets, encoder, val = load_anchors(dream.anchors), encoder_of(dream), dream.data.images("dataset", "val")
    with torch.inference_mode():
        nearest = torch.stack([torch.cosine_similarity(encoder(one["data"][None]), targets).argmax() for one in val])
    accuracy = 100 * (nearest == val.labels).float().mean().item()
    assert dream.space.manifest["val_accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_unit_embeddings_of_the_images_named(dream: Dream):
    found, encoder, train = load_space(dream.space), encoder_of(dream), dream.data.images("dataset", "train")
    assert torch.allclose(found["embeddings"].norm(dim=1), torch.ones(len(found["rows"])), atol=1e-5)
    assert torch.equal(train.labels[found["rows"]], found["labels"])
    for i in torch.randperm(len(found["rows"]))[:5].tolist():
        with torch.inference_mode():
            h = encoder(train[int(found["rows"][i])]["data"][None])[0]
        assert torch.allclose(found["embeddings"][i], h / h.norm(), atol=1e-4)


def test_per_class(dream: Dream):
    counts = torch.bincount(load_space(dream.space)["labels"]).tolist()
    assert counts == [30] * 6 == dream.space.manifest["per_class"]


def test_first_per_class():
    labels = torch.tensor([0, 1] * 50 + [2] * 3)[torch.randperm(103)]
    rows = first_per_class(labels, 10, seed=1)
    assert torch.bincount(labels[rows]).tolist() == [10, 10, 3]
    assert torch.equal(rows, rows.unique())  # ascending, each once
    assert torch.equal(rows, first_per_class(labels, 10, seed=1))
    assert not torch.equal(rows, first_per_class(labels, 10, seed=2))


def test_reused(dream: Dream, tiny: Tiny):
    again = tiny.config("--dream.outliers.k", "7", "--dream.synthesis.steps", "3").imagination.space
    assert again.reused and again.hash == dream.space.hash


@pytest.mark.parametrize(
    "change",
    [
        ("--dream.space.temperature", "0.2"),
        ("--dataset.normalization_type", "cifar10"),
        ("--dream.generator.anchor_norm", "0.5"),
        ("--preprocessor.random_crop", "false"),
    ],
)
def test_trained_again_after_a_change(dream: Dream, tiny: Tiny, monkeypatch, change):
    class Trained(Exception):
        pass

    def train_encoder(*args):
        raise Trained

    monkeypatch.setattr(space, "train_encoder", train_encoder)
    with pytest.raises(Trained):
        _ = tiny.config(*change).imagination.space


def test_one_seed_one_space(dream: Dream, tiny: Tiny, tmp_path):
    again = tiny.config("--dream.cache_dir", str(tmp_path)).imagination.space
    assert again.manifest["losses"] == pytest.approx(dream.space.manifest["losses"], rel=1e-4)
    one, other = load_space(dream.space)["embeddings"], load_space(again)["embeddings"]
    assert torch.allclose(one, other, atol=1e-3)


def test_interrupted_training_goes_on(tiny: Tiny, tmp_path, monkeypatch):
    """Stopped in its second epoch it begins with that, and gives what a training in one go gives, bit for bit."""
    words = ("--dream.space.epochs", "3", "--precision", "float32", "--dream.cache_dir")
    whole = tiny.config(*words, str(tmp_path / "whole")).imagination.space
    losses, train = F.cross_entropy, tiny.config()
    steps = math.ceil(len(train.data.images("dataset", "train")) / train.dream.space.batch_size)
    left = [steps + 1]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return losses(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(space.F, "cross_entropy", interrupted)
        _ = tiny.config(*words, str(tmp_path / "part")).imagination.space
    (state,) = (tmp_path / "part").glob("space-*/encoder.state")
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(space.F, "cross_entropy", lambda *args: done.append(1) or losses(*args))
        again = tiny.config(*words, str(tmp_path / "part")).imagination.space
    assert len(done) == 2 * steps and not state.exists()
    assert again.manifest["losses"] == whole.manifest["losses"]
    for name in ("encoder.safetensors", "embeddings.safetensors"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_damaged_state_of_a_training(tiny: Tiny, tmp_path, monkeypatch):
    words = ("--dream.space.epochs", "2", "--dream.cache_dir", str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(space, "unit_embeddings", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        _ = tiny.config(*words).imagination.space
    (state,) = tmp_path.glob("space-*/encoder.state")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match=r"encoder\.state: .*delete it to start anew"):
        _ = tiny.config(*words).imagination.space
    state.unlink()
    assert tiny.config(*words).imagination.space.manifest["losses"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("--dataset.num_classes", "7", "--dream.class_names", "[a, b, c, d, e, f, g]"),
            r"command line: dream\.class_names: class 6 .*train\.txt",
        ),
        (("--dream.space.network", "resnet18"), r"command line: dream\.space\.network: .*'resnet18'"),
        (("--dream.space.network_args", "{depth: x}"), r"dream\.space\.network_args\.depth: "),
    ],
)
def test_bad_input(tiny: Tiny, overrides, says, tmp_path):
    with pytest.raises(InputError, match=says):
        _ = tiny.config(*overrides, "--dream.cache_dir", str(tmp_path / "none")).imagination.space
