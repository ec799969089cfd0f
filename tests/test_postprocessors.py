"""Every detector equals its formula, computed image by image on fresh random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config import Config, InputError
from openood_dream.postprocessors import POSTPROCESSORS, Pass, find_postprocessor

CLASSES, DIM = 5, 12


@pytest.fixture
def head():
    return nn.Linear(DIM, CLASSES).requires_grad_(False)


@pytest.fixture
def splits(head):
    """Passes over training, validation and test images whose features cluster around their classes."""
    centres = 3 * torch.randn(CLASSES, DIM).abs()

    def a_pass(count: int) -> Pass:
        labels = torch.arange(count) % CLASSES
        features = (centres[labels] + torch.randn(count, DIM)).relu()
        return Pass(head(features), features, labels)

    head.weight.copy_(centres / centres.norm(dim=1, keepdim=True))
    return {"train": a_pass(200), "val": a_pass(60), "test": a_pass(40)}


def softmax(logits) -> np.ndarray:
    e = np.exp(np.asarray(logits, dtype=np.float64) - np.max(np.asarray(logits)))
    return e / e.sum()


def energy(logits) -> float:
    return float(np.log(np.exp(np.asarray(logits, dtype=np.float64)).sum()))


def msp(row, s, head):
    return softmax(row.logits).max()


def mls(row, s, head):
    return float(row.logits.max())


def ebo(row, s, head):
    return energy(row.logits)


def gen(row, s, head):
    p = np.sort(softmax(row.logits))[-3:]
    return -sum(x**0.2 * (1 - x) ** 0.2 for x in p)


def klm(row, s, head):
    p, val = softmax(row.logits), s["val"]
    predicted = [int(logits.argmax()) for logits in val.logits]
    divergences = []
    for label in range(CLASSES):
        mine = [softmax(logits) for logits, y in zip(val.logits, predicted) if y == label]
        if mine:
            q = np.mean(mine, axis=0)
            divergences.append(sum(p * np.log(p / q)))
    return -min(divergences)


def knn(row, s, head):
    unit = [f / f.norm() for f in s["train"].features]
    query = row.features / row.features.norm()
    return -sorted(float(((query - other) ** 2).sum()) for other in unit)[7 - 1]


def vim(row, s, head):
    w, b = head.weight.double().numpy(), head.bias.double().numpy()
    train = s["train"].features.double().numpy() + np.linalg.pinv(w) @ b
    values, vectors = np.linalg.eigh(train.T @ train)
    rest = vectors[:, np.argsort(-values)[4:]]
    alpha = s["train"].logits.double().numpy().max(1).mean() / np.linalg.norm(train @ rest, axis=1).mean()
    x = row.features.double().numpy() + np.linalg.pinv(w) @ b
    return energy(row.logits) - alpha * np.linalg.norm(x @ rest)


def mds(row, s, head):
    features, labels = s["train"].features.double().numpy(), s["train"].labels.numpy()
    means = [features[labels == label].mean(0) for label in range(CLASSES)]
    centred = np.stack([f - means[label] for f, label in zip(features, labels)])
    inverse = np.linalg.pinv(np.cov(centred.T, bias=True))
    x = row.features.double().numpy()
    return -min((x - mean) @ inverse @ (x - mean) for mean in means)


def rmds(row, s, head):
    features = s["train"].features.double().numpy()
    x = row.features.double().numpy() - features.mean(0)
    return mds(row, s, head) + x @ np.linalg.pinv(np.cov(features.T, bias=True)) @ x


def she(row, s, head):
    train, label = s["train"], int(row.logits.argmax())
    right = [
        f for f, logits, y in zip(train.features, train.logits, train.labels) if int(logits.argmax()) == y == label
    ]
    return float(torch.stack(right).mean(0) @ row.features)


def gradnorm(row, s, head):
    weight = head.weight.clone().requires_grad_(True)
    logits = F.linear(row.features, weight, head.bias)
    (-logits.log_softmax(0).sum()).backward()
    return float(weight.grad.abs().sum())


def fdbd(row, s, head):
    """Distances from the feature to its projections on the boundaries between the predicted class and each other."""
    label, distances = int(row.logits.argmax()), []
    for other in range(CLASSES):
        if other != label:
            normal = head.weight[label] - head.weight[other]
            offset = (head.bias[label] - head.bias[other]) / normal.norm()
            distances.append(abs(float(row.features @ normal / normal.norm() + offset)))
    return sum(distances) / float((row.features - s["train"].features.mean(0)).norm())


def nci(row, s, head):
    centred, w = row.features - s["train"].features.mean(0), head.weight[row.logits.argmax()]
    return float(centred @ w / centred.norm() + 0.01 * row.features.abs().sum())


def with_features(features, head):
    return energy(head(features))


def react(row, s, head):
    limit = float(np.percentile(s["val"].features.numpy().ravel(), 80))
    return with_features(torch.stack([min(x, torch.tensor(limit)) for x in row.features]), head)


def vra(row, s, head):
    low, high = (float(np.percentile(s["val"].features.numpy().ravel(), p)) for p in (20, 80))
    return with_features(torch.tensor([min(max(float(x), low), high) for x in row.features]), head)


def largest(features, percentile):
    count = DIM - int(np.round(DIM * percentile / 100))
    return sorted(range(DIM), key=lambda i: -features[i])[:count]


def ash(row, s, head):
    chosen = largest(row.features, 70)
    pruned = torch.zeros(DIM)
    pruned[chosen] = row.features.sum() / len(chosen)
    return with_features(pruned, head)


def scale(row, s, head):
    return with_features(
        row.features * torch.exp(row.features.sum() / row.features[largest(row.features, 70)].sum()), head
    )


def dice(row, s, head):
    contributions = s["train"].features.mean(0) * head.weight
    kept = head.weight * (contributions > np.percentile(contributions.numpy(), 60))
    return energy(kept @ row.features + head.bias)


ARGS = {
    "gen": {"gamma": 0.2, "M": 3},
    "knn": {"K": 7},
    "vim": {"dim": 4},
    "nci": {"alpha": 0.01},
    "react": {"percentile": 80},
    "vra": {"percentile_low": 20, "percentile_high": 80},
    "ash": {"percentile": 70},
    "scale": {"percentile": 70},
    "dice": {"p": 60},
}
REFERENCES = [msp, mls, ebo, gen, klm, knn, vim, mds, rmds, she, gradnorm, fdbd, nci, react, vra, ash, scale, dice]


def fitted(name: str, splits: dict[str, Pass], head: nn.Linear, **args):
    section = {"name": name, "postprocessor_args": ARGS.get(name, {}) | args}
    cls = POSTPROCESSORS[name]
    detector = cls(cls.arguments(Config({"postprocessor": section})))
    detector.fit(splits.__getitem__, head)
    return detector


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.__name__)
def test_confidence_equals_the_formula_image_by_image(reference, splits, head):
    test = splits["test"]
    conf = fitted(reference.__name__, splits, head).confidence(test)
    rows = [Pass(*(tensor[i] for tensor in (test.logits, test.features, test.labels))) for i in range(len(test.labels))]
    expected = torch.tensor([float(reference(row, splits, head)) for row in rows], dtype=torch.float64)
    assert conf.shape == (len(test.labels),)
    torch.testing.assert_close(conf.double(), expected, rtol=2e-3, atol=2e-3)


def test_every_detector_has_a_reference():
    classifiers = {name for name, cls in POSTPROCESSORS.items() if not cls.generative}
    assert {reference.__name__ for reference in REFERENCES} == classifiers


def test_fdbd_without_the_distance_divides_by_the_features_length(splits, head):
    test = splits["test"]
    with_mean = fitted("fdbd", splits, head).confidence(test)
    without = fitted("fdbd", splits, head, distance_as_normalizer=False).confidence(test)
    ratio = (test.features - splits["train"].features.mean(0)).norm(dim=1) / test.features.norm(dim=1)
    torch.testing.assert_close(without, with_mean * ratio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["react", "ash", "scale", "dice", "vra"])
def test_shaped_features_decide_the_prediction_too(name, splits, head):
    detector = fitted(name, splits, head)
    torch.testing.assert_close(detector.prediction(splits["test"]), detector.logits(splits["test"]).argmax(1))


def test_fitting_and_scoring_leave_the_passes_as_they_were(splits, head):
    before = {name: one.features.clone() for name, one in splits.items()}
    for name in (reference.__name__ for reference in REFERENCES):
        fitted(name, splits, head).confidence(splits["test"])
    assert all(torch.equal(one.features, before[name]) for name, one in splits.items())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("knn", {"K": 201}),
        ("knn", {"K": 0}),
        ("knn", {"K": "5"}),
        ("vim", {"dim": DIM}),
        ("she", {"metric": "x"}),
        ("react", {"percentile": 150}),
        ("ash", {"percentile": 100}),
        ("ebo", {"temperature": 0}),
        ("fdbd", {"distance_as_normalizer": 1}),
        ("dice", {"p": None}),
    ],
)
def test_impossible_arguments_are_named(name, args, splits, head):
    with pytest.raises(InputError, match=f"postprocessor.postprocessor_args.{next(iter(args))}: expected"):
        fitted(name, splits, head, **args)


def test_a_misspelt_argument_is_named_and_one_of_another_detector_is_left_alone():
    section = {"name": "ebo", "postprocessor_args": {"temperature": 2, "K": 5}}
    assert POSTPROCESSORS["ebo"].arguments(Config({"postprocessor": section})).model_dump() == {"temperature": 2}
    section["postprocessor_args"]["temprature"] = 5
    with pytest.raises(InputError, match=r"postprocessor_args\.temprature: unknown key; did you mean 'temperature'"):
        find_postprocessor(Config({"postprocessor": section}))


@pytest.mark.parametrize("name", ["she", "mds", "rmds"])
def test_a_class_without_training_images_is_named(name, splits, head):
    train = splits["train"]
    kept = train.labels != 2
    splits["train"] = Pass(train.logits[kept], train.features[kept], train.labels[kept])
    with pytest.raises(InputError, match=f"^{name}: class 2 has no training image"):
        fitted(name, splits, head)


def test_an_unknown_postprocessor_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown 'knnn'; did you mean 'knn'?.*ash, dice"):
        find_postprocessor(Config({"postprocessor": {"name": "knnn"}}))
