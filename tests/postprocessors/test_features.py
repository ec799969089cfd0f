"""Detectors on features equal their formulas, computed image by image on fresh random features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openood_dream.errors import InputError
from openood_dream.postprocessors.base import Pass


def energy(logits) -> float:
    return float(np.log(np.exp(np.asarray(logits, dtype=np.float64)).sum()))


def knn(row, splits, head):
    unit = [f / f.norm() for f in splits["train"].features]
    query = row.features / row.features.norm()
    return -sorted(float(((query - other) ** 2).sum()) for other in unit)[7 - 1]


def vim(row, splits, head):
    w, b = head.weight.double().numpy(), head.bias.double().numpy()
    train = splits["train"].features.double().numpy() + np.linalg.pinv(w) @ b
    values, vectors = np.linalg.eigh(train.T @ train)
    rest = vectors[:, np.argsort(-values)[4:]]
    alpha = splits["train"].logits.double().numpy().max(1).mean() / np.linalg.norm(train @ rest, axis=1).mean()
    x = row.features.double().numpy() + np.linalg.pinv(w) @ b
    return energy(row.logits) - alpha * np.linalg.norm(x @ rest)


def residual(row, splits, head):
    w, b = head.weight.double().numpy(), head.bias.double().numpy()
    val = splits["val"].features.double().numpy() + np.linalg.pinv(w) @ b
    values, vectors = np.linalg.eigh(val.T @ val)
    return -np.linalg.norm(
        (row.features.double().numpy() + np.linalg.pinv(w) @ b) @ vectors[:, np.argsort(-values)[4:]]
    )


def nnguide(row, splits, head):
    train = splits["train"]
    similarities = []
    for feature, logits in zip(
        train.features[:101], train.logits
    ):  # half of 200 is not enough for OpenOOD, so one more
        cosine = float(feature @ row.features / feature.norm() / row.features.norm())
        similarities.append(cosine * energy(logits))
    return np.mean(sorted(similarities)[-7:]) * energy(row.logits)


def relation(row, splits, head):
    total, p = 0.0, row.logits.softmax(0)
    for feature, logits in zip(splits["train"].features, splits["train"].logits):
        cosine = float(feature @ row.features / feature.norm() / row.features.norm())
        related = max(cosine, 0) * float(p @ logits.softmax(0))
        total += related**2 if related > 0.03 else 0
    return total


def mds(row, splits, head):
    features, labels = splits["train"].features.double().numpy(), splits["train"].labels.numpy()
    means = [features[labels == label].mean(0) for label in range(head.out_features)]
    centred = np.stack([f - means[label] for f, label in zip(features, labels)])
    inverse = np.linalg.pinv(np.cov(centred.T, bias=True))
    x = row.features.double().numpy()
    return -min((x - mean) @ inverse @ (x - mean) for mean in means)


def rmds(row, splits, head):
    features = splits["train"].features.double().numpy()
    x = row.features.double().numpy() - features.mean(0)
    return mds(row, splits, head) + x @ np.linalg.pinv(np.cov(features.T, bias=True)) @ x


def she(row, splits, head):
    train, label = splits["train"], int(row.logits.argmax())
    right = [
        f for f, logits, y in zip(train.features, train.logits, train.labels) if int(logits.argmax()) == y == label
    ]
    return float(torch.stack(right).mean(0) @ row.features)


def gradnorm(row, splits, head):
    weight = head.weight.clone().requires_grad_(True)
    logits = F.linear(row.features, weight, head.bias)
    (-logits.log_softmax(0).sum()).backward()
    return float(weight.grad.abs().sum())


def fdbd(row, splits, head):
    """Distances from the feature to its projections on the boundaries between the predicted class and each other."""
    label, distances = int(row.logits.argmax()), []
    for other in range(head.out_features):
        if other != label:
            normal = head.weight[label] - head.weight[other]
            offset = (head.bias[label] - head.bias[other]) / normal.norm()
            distances.append(abs(float(row.features @ normal / normal.norm() + offset)))
    return sum(distances) / float((row.features - splits["train"].features.mean(0)).norm())


def nci(row, splits, head):
    centred, w = row.features - splits["train"].features.mean(0), head.weight[row.logits.argmax()]
    return float(centred @ w / centred.norm() + 0.01 * row.features.abs().sum())


FORMULAS = [knn, nnguide, relation, vim, residual, mds, rmds, she, gradnorm, fdbd, nci]
ARGS = {"knn": {"K": 7}, "vim": {"dim": 4}, "residual": {"dim": 4}, "nci": {"alpha": 0.01}}
ARGS |= {"nnguide": {"K": 7, "alpha": 0.5}, "relation": {"pow": 2}}


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_formula(formula, equals):
    equals(formula.__name__, formula, **ARGS.get(formula.__name__, {}))


def test_fdbd_by_the_features_length(equals):
    def by_length(row, splits, head):
        distance = float((row.features - splits["train"].features.mean(0)).norm())
        return fdbd(row, splits, head) * distance / float(row.features.norm())

    equals("fdbd", by_length, distance_as_normalizer=False)


@pytest.mark.parametrize("name", ["she", "mds", "rmds"])
def test_class_without_training_images(name, splits, fitted):
    train = splits["train"]
    kept = train.labels != 2
    splits["train"] = Pass(train.logits[kept], train.features[kept], train.labels[kept])
    with pytest.raises(InputError, match=f"^{name}: class 2 has no training image"):
        fitted(name)


def test_nnguide_keeps_whole_batches(splits, fitted):
    splits["train"] = replace(splits["train"], batch=64)  # a tenth of 200 images needs one batch, half of them two
    assert fitted("nnguide", K=5, alpha=0.1).index.ntotal == 64
    assert fitted("nnguide", K=5, alpha=0.5).index.ntotal == 128
    assert fitted("nnguide", K=5, alpha=1).index.ntotal == 200
