"""Phase 1: the image encoder learns to point at the anchors of the class names."""

from __future__ import annotations

import pytest
import torch

from openood_dream import anchors, data, space
from openood_dream.config import InputError


def test_cosine_logits_are_the_cosines_over_the_temperature():
    embeddings, targets = torch.randn(5, 8), 0.4 * torch.randn(3, 8)
    found = space.cosine_logits(embeddings, targets, 0.1)
    for i in range(5):
        for j in range(3):
            expected = torch.cosine_similarity(embeddings[i], targets[j], dim=0) / 0.1
            assert found[i, j] == pytest.approx(expected.item(), abs=1e-5)


def test_lengths_of_embeddings_and_anchors_do_not_matter():
    embeddings, targets = torch.randn(5, 8), torch.randn(3, 8)
    found = space.cosine_logits(7 * embeddings, targets * torch.tensor([[0.1], [1], [30]]), 0.1)
    assert torch.allclose(found, space.cosine_logits(embeddings, targets, 0.1), atol=1e-5)


def test_the_cosine_classifier_is_far_better_than_chance_and_its_loss_falls(chain):
    manifest = chain.space.manifest
    assert manifest["val_accuracy"] > 50  # chance is 17 %
    assert len(manifest["losses"]) == 10 and manifest["losses"][-1] < 0.7 * manifest["losses"][0]


def test_the_accuracy_in_the_manifest_is_that_of_the_saved_encoder(chain):
    targets = anchors.load(chain.anchors)
    encoder = space.load_encoder(chain.config, chain.space, targets.shape[1])
    val = data.id_loader(chain.config, "val").dataset
    with torch.inference_mode():
        nearest = torch.stack([torch.cosine_similarity(encoder(one["data"][None]), targets).argmax() for one in val])
    assert chain.space.manifest["val_accuracy"] == pytest.approx(
        100 * (nearest == val.labels).float().mean().item(), abs=0.01
    )


def test_embeddings_are_unit_vectors_of_the_images_that_they_name(chain):
    found = space.load(chain.space)
    assert torch.allclose(found["embeddings"].norm(dim=1), torch.ones(len(found["rows"])), atol=1e-5)
    encoder = space.load_encoder(chain.config, chain.space, found["embeddings"].shape[1])
    train = data.id_loader(chain.config, "train").dataset
    assert torch.equal(train.labels[found["rows"]], found["labels"])
    for i in torch.randperm(len(found["rows"]))[:5].tolist():
        with torch.inference_mode():
            h = encoder(train[int(found["rows"][i])]["data"][None])[0]
        assert torch.allclose(found["embeddings"][i], h / h.norm(), atol=1e-4)


def test_no_class_gives_more_embeddings_than_the_limit(chain):
    counts = torch.bincount(space.load(chain.space)["labels"]).tolist()
    assert counts == [30] * 6 == chain.space.manifest["per_class"]


def test_the_limit_takes_random_images_by_the_seed_and_all_of_a_small_class():
    labels = torch.tensor([0, 1] * 50 + [2] * 3)[torch.randperm(103)]
    rows = space.first_per_class(labels, 10, seed=1)
    assert torch.bincount(labels[rows]).tolist() == [10, 10, 3]
    assert torch.equal(rows, rows.unique())  # ascending, each once
    assert torch.equal(rows, space.first_per_class(labels, 10, seed=1))
    assert not torch.equal(rows, space.first_per_class(labels, 10, seed=2))


def test_the_space_is_reused_until_something_that_made_it_changes(chain, tiny):
    assert space.run(tiny.config()).reused
    assert space.run(tiny.config("--dream.outliers.k", "7", "--dream.synthesis.steps", "3")).hash == chain.space.hash


@pytest.mark.parametrize(
    "change",
    [
        ("--dream.space.temperature", "0.2"),
        ("--dream.anchors.multi_token", "last"),
        ("--dataset.normalization_type", "cifar10"),
        ("--dream.generator.anchor_norm", "0.5"),
    ],
)
def test_a_change_of_what_the_space_depends_on_trains_it_again(chain, tiny, monkeypatch, change):
    class Trained(Exception):
        pass

    def train_encoder(*args):
        raise Trained

    monkeypatch.setattr(space, "train_encoder", train_encoder)
    with pytest.raises(Trained):
        space.run(tiny.config(*change))


def test_training_twice_with_one_seed_gives_the_same_space(chain, tiny, tmp_path):
    again = space.run(tiny.config("--dream.cache_dir", str(tmp_path)))
    assert again.manifest["losses"] == pytest.approx(chain.space.manifest["losses"], rel=1e-4)
    one, other = space.load(chain.space)["embeddings"], space.load(again)["embeddings"]
    assert torch.allclose(one, other, atol=1e-3)


def test_a_class_without_training_images_is_named(chain, tiny):
    config = tiny.config("--dataset.num_classes", "7", "--dream.class_names", "[a, b, c, d, e, f, g]")
    with pytest.raises(InputError, match=r"dream\.class_names: class 6 has no image in .*train\.txt; names and labels"):
        space.run(config)


def test_an_unknown_backbone_is_named(tiny):
    with pytest.raises(InputError, match=r"dream\.space\.network: unknown network 'resnet18'; expected timm:<model>"):
        space.run(tiny.config("--dream.space.network", "resnet18"))
