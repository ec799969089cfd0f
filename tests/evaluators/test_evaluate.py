"""Scores and files: what OpenOOD writes, from the formulas of the detectors."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from openood_dream.errors import InputError
from openood_dream.evaluators.evaluate import best_on_validation, fitted
from openood_dream.postprocessors.base import Postprocessor
from openood_dream.postprocessors.known import POSTPROCESSORS, find_postprocessor


@torch.no_grad()
def outputs(net, tiny, *which: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, features and labels of a data set, in one batch."""
    images = tiny.config().data.images(*which)
    return *net.eval()(images.__getitems__(range(len(images)))["data"], return_feature=True), images.labels


def npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def table(path: Path) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in csv.reader(path.read_text().splitlines())}


# -------------------------------------------------------------------------------------------------- scores and files


@pytest.mark.parametrize(
    "which, file",
    [(("dataset", "test"), "digits"), (("ood_dataset", "nearood", "near_digits"), "near_digits")],
)
def test_scores_are_the_detectors_formulas(net, tiny, folder, which, file):
    logits, features, labels = outputs(net, tiny, *which)
    bank = torch.nn.functional.normalize(outputs(net, tiny, "dataset", "train")[1], dim=1)
    nearest = torch.cdist(torch.nn.functional.normalize(features, dim=1), bank).sort(1).values[:, 49]
    expected = {"msp": logits.softmax(1).amax(1), "ebo": logits.exp().sum(1).log(), "knn": -nearest.square()}
    for postprocessor, conf in expected.items():
        saved = npz(folder / postprocessor / "scores" / f"{file}.npz")
        assert set(saved) == {"pred", "conf", "label"}
        assert np.allclose(saved["conf"], conf, atol=1e-4)
        assert (saved["pred"] == logits.argmax(1).numpy()).mean() > 0.99  # a tie within float error may fall either way
        assert (saved["label"] == (labels.numpy() if which[0] == "dataset" else -1)).all()


@pytest.mark.parametrize("postprocessor", ["msp", "ebo", "knn"])
def test_ood_csv_follows_from_the_scores(folder, postprocessor):
    with open(folder / postprocessor / "ood.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    assert [row[0] for row in rows] == ["near_digits", "nearood", "flower", "scrambled", "farood"]
    assert all(len(cell.split(".")[1]) == 2 for row in rows for cell in row[1:])
    id_scores = npz(folder / postprocessor / "scores" / "digits.npz")
    percent = {}
    for name, *cells in rows:
        if name in ("nearood", "farood"):
            continue
        conf = npz(folder / postprocessor / "scores" / f"{name}.npz")["conf"]
        truth = np.r_[np.ones(len(id_scores["conf"])), np.zeros(len(conf))]
        auroc = roc_auc_score(truth, np.r_[id_scores["conf"], conf])
        accuracy = (id_scores["pred"] == id_scores["label"]).mean()
        assert cells[1] == f"{100 * auroc:.2f}" and cells[4] == f"{100 * accuracy:.2f}"
        percent[name] = np.array(cells, float)
    means = {name: np.array(cells, float) for name, *cells in rows if name in ("nearood", "farood")}
    assert np.allclose(means["nearood"], percent["near_digits"], atol=0.0101)
    assert np.allclose(means["farood"], (percent["flower"] + percent["scrambled"]) / 2, atol=0.0101)


def test_config_yml(folder):
    assert yaml.safe_load((folder / "knn" / "config.yml").read_text())["postprocessor"]["name"] == "knn"


def test_near_ood_means_are_returned(scored, run, folder, tmp_path):
    values = run(scored("ebo"), tmp_path)
    line = next(row for row in (tmp_path / "ood.csv").read_text().splitlines() if row.startswith("nearood"))
    assert line == ",".join(["nearood", *(f"{100 * value:.2f}" for value in values)])
    assert (tmp_path / "ood.csv").read_bytes() == (folder / "ebo" / "ood.csv").read_bytes()


def test_a_detector_that_runs_the_network(net, tiny, scored, run, tmp_path, monkeypatch):
    """It gets the network and the images of the list; with no classes to predict, there is no accuracy."""

    class Brightness(Postprocessor):
        name, runs_network, Arguments = "msp", True, POSTPROCESSORS["msp"].Arguments

        def confidence(self, images):
            assert images.net is net
            return torch.cat([batch["data"].mean((1, 2, 3)) for batch in images.loader])

        def prediction(self, images):
            return torch.full_like(images.labels, -1)

    monkeypatch.setitem(POSTPROCESSORS, "msp", Brightness)
    values = run(scored("msp"), tmp_path)
    expected = tiny.config().data.images("dataset", "test").__getitems__(range(100))["data"].mean((1, 2, 3))
    assert np.allclose(npz(tmp_path / "scores" / "digits.npz")["conf"][:100], expected)
    assert np.isnan(values[-1]) and (tmp_path / "ood.csv").read_text().splitlines()[1].endswith(",-")


# ------------------------------------------------------------------------------------------------------ full spectrum


@pytest.fixture
def shifted(tiny, scored, tmp_path):
    """Builds configs with two covariate-shifted sets: ID validation and training images stand for them."""
    dataset = tiny.config().dataset
    sets = {"first": dataset.val.imglist_pth, "second": dataset.train.imglist_pth}
    lists = {name: {"data_dir": dataset.test.data_dir, "imglist_pth": path} for name, path in sets.items()}
    file = tmp_path / "csid.yml"
    file.write_text(yaml.safe_dump({"ood_dataset": {"csid": {"datasets": [*lists], **lists}}}))
    return lambda name, *overrides: scored(name, *overrides, layers=(str(file),))


def test_accuracy_on_shifted_sets(net, tiny, shifted, run, tmp_path):
    run(shifted("ebo"), tmp_path)
    found, hits = table(tmp_path / "csid.csv"), []
    for name, split in (("first", "val"), ("second", "train")):
        logits, _, labels = outputs(net, tiny, "dataset", split)
        hits.append((logits.argmax(1) == labels).float().mean().item())
        assert found[name] == ["-", "-", "-", "-", f"{100 * hits[-1]:.2f}"]
        assert (npz(tmp_path / "scores" / f"{name}.npz")["label"] == labels.numpy()).all()
    assert found["csid"][-1] == f"{50 * sum(hits):.2f}"


def test_the_full_spectrum_counts_shifted_images_as_id(shifted, run, folder, tmp_path):
    run(shifted("ebo"), tmp_path)
    id_conf = np.concatenate([npz(tmp_path / f"scores/{name}.npz")["conf"] for name in ("digits", "first", "second")])
    ood_conf = npz(tmp_path / "scores" / "near_digits.npz")["conf"]
    truth = np.repeat([1, 0], [len(id_conf), len(ood_conf)])
    auroc = roc_auc_score(truth, np.concatenate([id_conf, ood_conf]))
    assert table(tmp_path / "fsood.csv")["near_digits"][1] == f"{100 * auroc:.2f}"
    assert (tmp_path / "ood.csv").read_text() == (folder / "ebo" / "ood.csv").read_text()  # and nothing else changes


def test_scheme_fsood(shifted, run, tmp_path):
    for scheme in ("ood", "fsood"):
        run(shifted("ebo", "--evaluator.ood_scheme", scheme), tmp_path / scheme)
    assert (tmp_path / "fsood" / "ood.csv").read_text() == (tmp_path / "ood" / "fsood.csv").read_text()
    assert not (tmp_path / "fsood" / "fsood.csv").exists()


def test_shifted_set_with_labels_of_no_class(tiny, shifted, run, tmp_path):
    config = shifted("ebo", "--ood_dataset.csid.first.imglist_pth", tiny.config().ood_dataset.val.imglist_pth)
    with pytest.raises(InputError, match=r"val_turned\.txt: label -1 "):
        run(config, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------- search, mistakes


def test_search_on_validation_data_alone(tiny, scored, passes_of):
    values = ["--postprocessor.APS_mode", "true", "--postprocessor.postprocessor_sweep.K_list", "[1, 20, 200]"]
    settings = scored("knn", *values).postprocessor
    # a look at the test sets would fail
    passes = passes_of(tiny.config("--ood_dataset.nearood", "null", "--ood_dataset.farood", "null"))
    cls, aurocs = find_postprocessor(settings, "timm:resnet10t"), {}
    id_val, ood_val = (passes.of((section, "val"), cls) for section in ("dataset", "ood_dataset"))
    for k in (1, 20, 200):
        detector = fitted(cls, cls.arguments(settings, K=k), passes)
        id_conf, ood_conf = detector.confidence(id_val).numpy(), detector.confidence(ood_val).numpy()
        aurocs[k] = np.mean(id_conf[:, None] > ood_conf) + 0.5 * np.mean(id_conf[:, None] == ood_conf)
    best = best_on_validation(cls, settings, passes)
    assert aurocs[best.args.K] == max(aurocs.values()) and len(set(aurocs.values())) > 1


def test_search_without_values(scored, run, tmp_path):
    values = ["--postprocessor.APS_mode", "true", "--postprocessor.postprocessor_sweep.K_list", "5"]
    with pytest.raises(InputError, match=r"^command line: postprocessor\.postprocessor_sweep\.K_list: .*got 5"):
        run(scored("knn", *values), tmp_path)


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
def test_output_that_is_no_number(net, tiny, scored, passes_of, run, tmp_path, postprocessor, part):
    """Detector and image are named, also where the detector would not notice: msp does not look at features."""
    name, _ = tiny.config().data.images("dataset", "test").rows[6]
    with pytest.raises(InputError, match=rf"^{postprocessor}: .* image 6 of digits \({re.escape(name)}\)"):
        config = scored(postprocessor, "--postprocessor.APS_mode", "false")
        run(config, tmp_path / "out", passes_of(tiny.config(), Broken(net, part)))
    assert not (tmp_path / "out").exists()


def test_training_image_without_numbers(net, tiny, scored, passes_of, run, tmp_path):
    """faiss finds no neighbours for features that are no numbers, and gives a distance all the same."""
    with pytest.raises(InputError, match="^knn: .* image 6 of train"):
        run(scored("knn"), tmp_path, passes_of(tiny.config(), Broken(net, "features")))


def test_score_that_is_no_number(scored, run, tmp_path, monkeypatch):
    monkeypatch.setattr(POSTPROCESSORS["msp"], "confidence", lambda self, images: torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(InputError, match=r"^msp: the score of image 1 of digits \(.*png\)"):
        run(scored("msp"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_neighbours_than_training_images(scored, run, tmp_path):
    with pytest.raises(InputError, match=r"^command line: postprocessor\.postprocessor_args\.K: .*378 .*got 5000"):
        words = ["--postprocessor.APS_mode", "false", "--postprocessor.postprocessor_args.K", "5000"]
        run(scored("knn", *words), tmp_path)


def test_unknown_postprocessor(scored, run, tmp_path):
    with pytest.raises(InputError, match=r"^command line: postprocessor\.name: .*'eboo'.*'ebo'"):
        run(scored("ebo", "--postprocessor.name", "eboo"), tmp_path)
