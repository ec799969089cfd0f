"""Metrics, scores and files: OpenOOD's numbers, from one pass over each data set."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from openood_dream import data, evaluate, store
from openood_dream.config import Config, InputError
from openood_dream.networks import get_network
from openood_dream.openood import compat, registry
from openood_dream.trainers import loop

CPU = torch.device("cpu")


def example(inside, outside, right=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """conf, label and pred of ID confidences and OOD ones; `right` says which ID predictions are."""
    right = np.ones(len(inside), bool) if right is None else np.asarray(right)
    label = np.concatenate([np.zeros(len(inside), int), np.full(len(outside), -1)])
    return (
        np.concatenate([inside, outside]).astype(float),
        label,
        np.where(np.append(right, label[len(inside) :] == 0), 0, 1),
    )


def metrics(*sides) -> dict[str, float]:
    conf, label, pred = example(*sides)
    return dict(zip(evaluate.METRICS, evaluate.compute_metrics(conf, label, pred)))


def auroc_by_pairs(inside, outside) -> float:
    """The share of (ID, OOD) pairs in which the ID image is the more confident; ties count half."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside]))


def fpr95_by_thresholds(inside, outside) -> float:
    """The share of ID images lost at the strictest threshold that finds at least 95 % of the OOD images."""
    for threshold in sorted({*inside, *outside}):
        if np.mean(np.asarray(outside) <= threshold) >= 0.95:
            return float(np.mean(np.asarray(inside) <= threshold))
    raise AssertionError


def area_by_trapezoids(positive, negative) -> float:
    """Area under precision over recall; positive is what scores at least a threshold. Precision is 1 at recall 0."""
    positive, negative = np.asarray(positive), np.asarray(negative)
    points = [(0.0, 1.0)]
    for threshold in sorted({*positive, *negative}, reverse=True):
        found, wrong = np.sum(positive >= threshold), np.sum(negative >= threshold)
        points.append((found / len(positive), found / (found + wrong)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 2.0])
def test_metrics_are_those_of_slow_loops(shift):
    inside, outside = np.random.default_rng().normal(shift, 1, 83), np.random.default_rng().normal(0, 1, 61)
    right = np.random.default_rng().random(83) < 0.7
    found = metrics(inside, outside, right)
    assert found["AUROC"] == pytest.approx(auroc_by_pairs(inside, outside))
    assert found["FPR@95"] == pytest.approx(fpr95_by_thresholds(inside, outside))
    assert found["AUPR_IN"] == pytest.approx(area_by_trapezoids(inside, outside))
    assert found["AUPR_OUT"] == pytest.approx(area_by_trapezoids(-outside, -inside))
    assert found["ACC"] == pytest.approx(right.mean())


def test_ties_count_half():
    inside, outside = np.random.default_rng().integers(0, 4, 50), np.random.default_rng().integers(-1, 3, 40)
    found = metrics(inside, outside)
    assert found["AUROC"] == pytest.approx(auroc_by_pairs(inside, outside))
    assert found["FPR@95"] == pytest.approx(fpr95_by_thresholds(inside, outside))


def by_openood(conf, label, pred) -> list[float]:
    """FPR@95, AUROC, AUPR_IN, AUPR_OUT and ACC as OpenOOD's own function computes them."""
    if not compat.installed("openood"):
        pytest.skip(f"OpenOOD is not installed; {registry.INSTALL}")
    with compat.enabled():
        from openood.evaluators.metrics import compute_all_metrics
    return compute_all_metrics(conf, label, pred)


ADVERSARIAL = {
    "ties": ([1, 1, 2, 2, 3], [1, 2, 2, 2]),
    "all the same": ([5.0] * 7, [5.0] * 3),
    "one of each": ([1.0], [0.0]),
    "one of each, reversed": ([0.0], [1.0]),
    "one of each, the same": ([0.0], [0.0]),
    "one ID image": ([0.5], list(np.linspace(0, 1, 50))),
    "one OOD image": (list(np.linspace(0, 1, 50)), [0.5]),
    "next to each other": ([1.0, np.nextafter(1.0, 2)], [1.0, np.nextafter(1.0, 0)]),
    "huge and tiny": ([1e308, -1e308, 5e-324], [0.0, -5e-324, 1e308]),
}


@pytest.mark.openood
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_metrics_are_openoods_on_adversarial_input(case):
    conf, label, pred = example(*ADVERSARIAL[case])
    assert evaluate.compute_metrics(conf, label, pred).tolist() == by_openood(conf, label, pred)


@pytest.mark.openood
def test_metrics_are_openoods_on_random_scores_of_either_precision():
    rng = np.random.default_rng()
    for kind in (np.float32, np.float64):
        conf, label, pred = example(
            rng.normal(1, 1, 300).round(2), rng.normal(0, 1, 200).round(2), rng.random(300) < 0.8
        )
        assert evaluate.compute_metrics(conf.astype(kind), label, pred).tolist() == by_openood(
            conf.astype(kind), label, pred
        )


def test_infinite_scores_count_as_the_largest_and_the_smallest():
    rng = np.random.default_rng()
    inside, outside = rng.normal(1, 1, 40), rng.normal(0, 1, 30)
    inside[:5], inside[5:8], outside[:2], outside[2:9] = np.inf, -np.inf, np.inf, -np.inf
    finite = [np.nan_to_num(side, posinf=99, neginf=-99) for side in (inside, outside)]
    assert metrics(inside, outside) == metrics(*finite)
    assert metrics(inside, outside)["AUROC"] == pytest.approx(auroc_by_pairs(inside, outside))


def test_constant_scores_tell_nothing_apart():
    found = metrics([3.0] * 30, [3.0] * 10)
    assert found["AUROC"] == 0.5 and found["FPR@95"] == 1.0 and found["ACC"] == 1.0


def test_separated_scores_are_perfect_and_reversed_ones_worst():
    inside, outside = np.linspace(1, 2, 40), np.linspace(-1, 0, 30)
    best, worst = metrics(inside, outside), metrics(outside, inside)
    assert (best["FPR@95"], best["AUROC"], best["AUPR_IN"], best["AUPR_OUT"]) == pytest.approx((0, 1, 1, 1))
    assert (worst["FPR@95"], worst["AUROC"]) == pytest.approx((1, 0))


def test_predictions_on_ood_images_have_no_say_in_the_accuracy():
    conf, label, pred = example([1.0, 2.0], [0.0, 0.5, 0.1], [True, False])
    for value in (-1, 0, 5):
        assert evaluate.compute_metrics(conf, label, np.where(label == -1, value, pred))[-1] == 0.5


# ---------------------------------------------------------------------------------------------------- a scored network


@pytest.fixture(scope="module")
def net(tiny) -> torch.nn.Module:
    """A network after a few steps on digits, so that its scores mean something."""
    torch.manual_seed(0)
    net = get_network(tiny.config())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for batch in data.id_loader(tiny.config(), "train", augment=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch["data"]), batch["label"]).backward()
        optimizer.step()
    return net.eval()


def scored(tiny, name: str, *overrides: str) -> Config:
    return tiny.config(*overrides, layers=[f"postprocessors/{name}.yml"])


@pytest.fixture(scope="module")
def folder(tiny, net, tmp_path_factory) -> Path:
    """The files of one evaluation with three postprocessors, sharing their passes."""
    root = tmp_path_factory.mktemp("evaluated")
    passes = evaluate.Passes(net, tiny.config())
    for name in ("msp", "ebo", "knn"):
        evaluate.evaluate(passes, scored(tiny, name), root / name)
    return root


@torch.no_grad()
def outputs(net, tiny, which: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, features and labels of a data set, in one batch."""
    groups = {name: group for group, name in data.ood_sets(tiny.config())}
    config = tiny.config()
    loader = data.ood_loader(config, groups[which], which) if which in groups else data.id_loader(config, which)
    images = loader.dataset
    return *net.eval()(images.__getitems__(range(len(images)))["data"], return_feature=True), images.labels


def npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name, file", [("test", "digits"), ("near_digits", "near_digits")])
def test_saved_scores_are_the_detectors_formulas(net, tiny, folder, name, file):
    logits, features, labels = outputs(net, tiny, name)
    bank = torch.nn.functional.normalize(outputs(net, tiny, "train")[1], dim=1)
    nearest = torch.cdist(torch.nn.functional.normalize(features, dim=1), bank).sort(1).values[:, 49]
    expected = {"msp": logits.softmax(1).amax(1), "ebo": logits.exp().sum(1).log(), "knn": -nearest.square()}
    for postprocessor, conf in expected.items():
        saved = npz(folder / postprocessor / "scores" / f"{file}.npz")
        assert set(saved) == {"pred", "conf", "label"}
        assert np.allclose(saved["conf"], conf, atol=1e-4)
        assert (saved["pred"] == logits.argmax(1).numpy()).mean() > 0.99  # a tie within float error may fall either way
        assert (saved["label"] == (labels.numpy() if name == "test" else -1)).all()


@pytest.mark.parametrize("postprocessor", ["msp", "ebo", "knn"])
def test_ood_csv_is_openoods_and_follows_from_the_saved_scores(folder, postprocessor):
    with open(folder / postprocessor / "ood.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    assert [row[0] for row in rows] == ["near_digits", "nearood", "flower", "noise", "farood"]
    assert all(len(cell.split(".")[1]) == 2 for row in rows for cell in row[1:])
    inside = npz(folder / postprocessor / "scores" / "digits.npz")
    percent = {}
    for name, *cells in rows:
        if name in ("nearood", "farood"):
            continue
        conf = npz(folder / postprocessor / "scores" / f"{name}.npz")["conf"]
        truth = np.r_[np.ones(len(inside["conf"])), np.zeros(len(conf))]
        auroc = roc_auc_score(truth, np.r_[inside["conf"], conf])
        accuracy = (inside["pred"] == inside["label"]).mean()
        assert cells[1] == f"{100 * auroc:.2f}" and cells[4] == f"{100 * accuracy:.2f}"
        percent[name] = np.array(cells, float)
    means = {name: np.array(cells, float) for name, *cells in rows if name in ("nearood", "farood")}
    assert np.allclose(means["nearood"], percent["near_digits"], atol=0.0101)
    assert np.allclose(means["farood"], (percent["flower"] + percent["noise"]) / 2, atol=0.0101)


def test_the_settings_lie_beside_the_scores(folder):
    assert yaml.safe_load((folder / "knn" / "config.yml").read_text())["postprocessor"]["name"] == "knn"


def test_the_near_ood_means_are_returned(net, tiny, folder, tmp_path):
    values = evaluate.evaluate(evaluate.Passes(net, tiny.config()), scored(tiny, "ebo"), tmp_path)
    line = next(row for row in (tmp_path / "ood.csv").read_text().splitlines() if row.startswith("nearood"))
    assert line == ",".join(["nearood", *(f"{100 * value:.2f}" for value in values)])
    assert (tmp_path / "ood.csv").read_bytes() == (folder / "ebo" / "ood.csv").read_bytes()


def test_each_image_passes_the_network_once_for_all_postprocessors(net, tiny, tmp_path):
    seen = []
    hook = net.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    passes = evaluate.Passes(net, tiny.config())
    for name in ("msp", "ebo", "knn"):
        evaluate.evaluate(passes, scored(tiny, name), tmp_path / name)
    hook.remove()
    counts = [len(data.id_loader(tiny.config(), split).dataset) for split in ("test", "train")]
    counts += [len(data.ood_loader(tiny.config(), *which).dataset) for which in data.ood_sets(tiny.config())]
    counts += [len(data.ood_loader(tiny.config(), "csid", name).dataset) for name in data.csid_sets(tiny.config())]
    assert sum(seen) == sum(counts)


# -------------------------------------------------------------------------------------------------- full spectrum


@pytest.fixture
def shifted(tiny, tmp_path):
    """Builds configs with two covariate-shifted sets: ID validation and training images stand for them."""
    section = tiny.config().dataset
    sets = {"first": section.val.imglist_pth, "second": section.train.imglist_pth}
    lists = {name: {"data_dir": section.test.data_dir, "imglist_pth": path} for name, path in sets.items()}
    file = tmp_path / "csid.yml"
    file.write_text(yaml.safe_dump({"ood_dataset": {"csid": {"datasets": [*lists], **lists}}}))
    return lambda name, *overrides: tiny.config(*overrides, layers=[f"postprocessors/{name}.yml", str(file)])


def table(path: Path) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in csv.reader(path.read_text().splitlines())}


def test_the_accuracy_on_shifted_sets_and_its_mean_are_beside_the_scores(net, tiny, shifted, tmp_path):
    evaluate.evaluate(evaluate.Passes(net, shifted("ebo")), shifted("ebo"), tmp_path)
    found, hits = table(tmp_path / "csid.csv"), []
    for name, split in (("first", "val"), ("second", "train")):
        logits, _, labels = outputs(net, tiny, split)
        hits.append((logits.argmax(1) == labels).float().mean().item())
        assert found[name] == ["-", "-", "-", "-", f"{100 * hits[-1]:.2f}"]
        assert (npz(tmp_path / "scores" / f"{name}.npz")["label"] == labels.numpy()).all()
    assert found["csid"][-1] == f"{50 * sum(hits):.2f}"


def test_the_full_spectrum_counts_shifted_images_as_known(net, shifted, folder, tmp_path):
    evaluate.evaluate(evaluate.Passes(net, shifted("ebo")), shifted("ebo"), tmp_path)
    inside = np.concatenate(
        [npz(tmp_path / "scores" / f"{name}.npz")["conf"] for name in ("digits", "first", "second")]
    )
    outside = npz(tmp_path / "scores" / "near_digits.npz")["conf"]
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    auroc = roc_auc_score(truth, np.concatenate([inside, outside]))
    assert table(tmp_path / "fsood.csv")["near_digits"][1] == f"{100 * auroc:.2f}"
    assert (tmp_path / "ood.csv").read_text() == (folder / "ebo" / "ood.csv").read_text()  # and nothing else changes


def test_the_scheme_fsood_puts_the_full_spectrum_into_ood_csv(net, shifted, tmp_path):
    for scheme in ("ood", "fsood"):
        config = shifted("ebo")
        config.evaluator = {"ood_scheme": scheme}
        evaluate.evaluate(evaluate.Passes(net, config), config, tmp_path / scheme)
    assert (tmp_path / "fsood" / "ood.csv").read_text() == (tmp_path / "ood" / "fsood.csv").read_text()


def test_a_shifted_set_with_labels_of_no_class_is_named(net, shifted, tiny, tmp_path):
    config = shifted("ebo", "--ood_dataset.csid.first.imglist_pth", tiny.config().ood_dataset.val.imglist_pth)
    with pytest.raises(InputError, match=r"val_turned\.txt: label -1 does not fit; expected labels 0 to 5"):
        evaluate.evaluate(evaluate.Passes(net, config), config, tmp_path / "out")


# ------------------------------------------------------------------------------------------------- passes on disk


@pytest.fixture
def checkpoint(net, tmp_path) -> Path:
    loop.save_weights(net, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_passes_on_disk_serve_other_detectors_and_later_runs(net, tiny, folder, checkpoint, tmp_path, monkeypatch):
    config = tiny.config()
    evaluate.evaluate(
        evaluate.Passes(net, config, checkpoint, tmp_path / "passes"), scored(tiny, "knn"), tmp_path / "a"
    )
    monkeypatch.setattr(evaluate, "forward_pass", lambda *args: pytest.fail("ran the network again"))
    monkeypatch.setattr(data, "loader", lambda *args, **more: pytest.fail("decoded images again"))
    later = evaluate.Passes(net, config, checkpoint, tmp_path / "passes")
    for name in ("msp", "ebo", "knn"):
        evaluate.evaluate(later, scored(tiny, name), tmp_path / name)
        for file in ("ood.csv", "scores/near_digits.npz"):
            assert (tmp_path / name / file).read_bytes() == (folder / name / file).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc lists what a process has mapped")
def test_passes_on_disk_are_mapped_not_read(net, tiny, checkpoint, tmp_path):
    passes = evaluate.Passes(net, tiny.config(), checkpoint, tmp_path / "passes")
    of = passes.of(("dataset", "train"), evaluate.Postprocessor)
    file = next((tmp_path / "passes").rglob("pass.safetensors"))
    assert str(file) in Path("/proc/self/maps").read_text() and of.features.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    ["checkpoint", "--dataset.image_size 12", "--dataset.normalization_type cifar10", "--dataset.test.imglist_pth"],
)
def test_another_checkpoint_list_or_transform_makes_another_pass(net, tiny, checkpoint, tmp_path, change):
    def folders(*overrides: str) -> set[Path]:
        passes = evaluate.Passes(net, tiny.config(*overrides), checkpoint, tmp_path / "passes")
        passes.of(evaluate.TEST, evaluate.Postprocessor)
        return set((tmp_path / "passes").iterdir())

    before = folders()
    assert len(folders()) == 1
    if change == "checkpoint":
        changed = {name: tensor + 1e-4 for name, tensor in net.state_dict().items()}
        torch.save(changed, checkpoint)
        assert len(folders()) == 2
    elif change.endswith("pth"):
        assert len(folders(change, tiny.config().dataset.val.imglist_pth)) == 2
    else:
        assert len(folders(*change.split())) == 2
    assert folders() >= before


def test_a_damaged_pass_is_named_with_what_to_do(net, tiny, checkpoint, tmp_path):
    evaluate.Passes(net, tiny.config(), checkpoint, tmp_path / "passes").of(evaluate.TEST, evaluate.Postprocessor)
    file = next((tmp_path / "passes").rglob("pass.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{re.escape(str(file))}: not a readable .*delete its folder and run again"):
        evaluate.Passes(net, tiny.config(), checkpoint, tmp_path / "passes").of(evaluate.TEST, evaluate.Postprocessor)


def test_a_detector_that_runs_the_network_gets_it_with_the_images_of_the_list(net, tiny, tmp_path, monkeypatch):
    """And with no classes to predict, there is no accuracy."""

    class Brightness(evaluate.Postprocessor):
        name, runs_network = "msp", True

        def confidence(self, images):
            assert images.net is net
            return torch.cat([batch["data"].mean((1, 2, 3)) for batch in images.loader])

        def prediction(self, images):
            return torch.full_like(images.labels, -1)

    monkeypatch.setitem(evaluate.find_postprocessor.__globals__["POSTPROCESSORS"], "msp", Brightness)
    values = evaluate.evaluate(evaluate.Passes(net, tiny.config()), scored(tiny, "msp"), tmp_path)
    expected = data.id_loader(tiny.config(), "test").dataset.__getitems__(range(100))["data"].mean((1, 2, 3))
    assert np.allclose(npz(tmp_path / "scores" / "digits.npz")["conf"][:100], expected)
    assert np.isnan(values[-1]) and (tmp_path / "ood.csv").read_text().splitlines()[1].endswith(",-")


def test_evaluation_mode_and_order_do_not_depend_on_the_loader(net, tiny):
    net.train()
    of = evaluate.forward_pass(net, data.id_loader(tiny.config("--dataset.test.batch_size", "7"), "test"), CPU)
    assert not net.training
    logits, features, labels = outputs(net, tiny, "test")
    assert torch.allclose(of.logits, logits, atol=1e-4) and torch.allclose(of.features, features, atol=1e-4)
    assert torch.equal(of.labels, labels)
    hits = (logits.argmax(1) == labels).float().mean().item()
    assert evaluate.accuracy(net, data.id_loader(tiny.config(), "test"), CPU) == pytest.approx(hits, abs=0.005)


# --------------------------------------------------------------------------------------------------- search, mistakes


def test_hyperparameters_are_searched_on_validation_data_alone(net, tiny, tmp_path):
    search = ["--postprocessor.APS_mode", "true", "--postprocessor.postprocessor_sweep.K_list", "[1, 20, 200]"]
    config = scored(tiny, "knn", *search)
    passes = evaluate.Passes(net, config)
    cls, aurocs = evaluate.find_postprocessor(config), {}
    val, ood = (passes.of((room, "val"), cls) for room in ("dataset", "ood_dataset"))
    for k in (1, 20, 200):
        detector = evaluate.fitted(cls, cls.arguments(config, K=k), passes)
        aurocs[k] = auroc_by_pairs(detector.confidence(val).numpy(), detector.confidence(ood).numpy())
    config.ood_dataset.nearood = config.ood_dataset.farood = None  # a look at the test sets would fail
    best = evaluate.best_on_validation(cls, config, passes)
    assert aurocs[best.K] == max(aurocs.values()) and len(set(aurocs.values())) > 1


def test_a_search_without_values_is_named(net, tiny, tmp_path):
    search = ["--postprocessor.APS_mode", "true", "--postprocessor.postprocessor_sweep.K_list", "5"]
    with pytest.raises(InputError, match=r"postprocessor_sweep\.K_list: expected a list of values, got 5"):
        evaluate.evaluate(evaluate.Passes(net, tiny.config()), scored(tiny, "knn", *search), tmp_path)


class Broken(torch.nn.Module):
    """A network whose seventh image of a batch and all after it have no number as their logits or features."""

    def __init__(self, net: torch.nn.Module, part: str) -> None:
        super().__init__()
        self.net, self.part = net, part

    def forward(self, x, return_feature=False):
        logits, feature = self.net(x, return_feature=True)
        (logits if self.part == "logits" else feature)[6:] = torch.nan
        return (logits, feature) if return_feature else logits

    def get_fc_layer(self):
        return self.net.get_fc_layer()


@pytest.mark.parametrize("part", ["logits", "features"])
@pytest.mark.parametrize("postprocessor", ["msp", "ebo"])
def test_an_output_that_is_no_number_is_named_with_detector_and_image(net, tiny, tmp_path, postprocessor, part):
    """Also where the detector would not notice: msp does not look at features."""
    name, _ = store.read_imglist(tiny.config().dataset.test.imglist_pth)[6]
    words = rf"{postprocessor}: the network's output for image 6 of digits \({re.escape(name)}\) is not a number"
    with pytest.raises(InputError, match=words):
        evaluate.evaluate(
            evaluate.Passes(Broken(net, part), tiny.config()), scored(tiny, postprocessor), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_broken_training_image_is_named_by_the_detector_that_learns_from_it(net, tiny, tmp_path):
    """faiss finds no neighbours for features that are no numbers, and gives a distance all the same."""
    with pytest.raises(InputError, match="knn: the network's output for image 6 of train"):
        evaluate.evaluate(evaluate.Passes(Broken(net, "features"), tiny.config()), scored(tiny, "knn"), tmp_path)


def test_a_score_that_is_no_number_is_named_with_detector_and_image(net, tiny, tmp_path, monkeypatch):
    cls = evaluate.find_postprocessor(scored(tiny, "msp"))
    monkeypatch.setattr(cls, "confidence", lambda self, images: torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(InputError, match=r"msp: the score of image 1 of digits \(.*png\) is not a number"):
        evaluate.evaluate(evaluate.Passes(net, tiny.config()), scored(tiny, "msp"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_neighbours_than_training_images_are_named(net, tiny, tmp_path):
    with pytest.raises(InputError, match=r"postprocessor_args\.K: expected 1 to 378 .*got 5000"):
        config = scored(tiny, "knn", "--postprocessor.postprocessor_args.K", "5000")
        evaluate.evaluate(evaluate.Passes(net, tiny.config()), config, tmp_path)


def test_an_unknown_postprocessor_is_named_with_the_known_ones(tiny):
    config = scored(tiny, "ebo", "--postprocessor.name", "eboo")
    with pytest.raises(InputError, match=r"postprocessor\.name: unknown 'eboo'; did you mean 'ebo'\? .*knn.*msp"):
        evaluate.find_postprocessor(config)
