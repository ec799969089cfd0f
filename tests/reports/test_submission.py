"""An entry of OpenOOD's leaderboard."""

from __future__ import annotations

import warnings

import pytest
from finished_runs import scores, write_run

from openood_dream.errors import InputWarning
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.reports import entries
from openood_dream.reports.entries import DETECTORS, list_hash
from openood_dream.reports.runs import collect
from openood_dream.reports.submission import submit
from openood_dream.reports.table import table


def test_submission_has_every_csv_and_the_filled_text(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "in", "dream/ood", seed, rows=scores(90 + seed), outlier_data="imagined (knn)")
    runs = collect([tmp_path / "in"])
    issue = submit(runs, table(runs), tmp_path / "out").read_text()
    for line in (
        "Title: [leaderboard] dream/ood",
        "- **Training**: dream/ood",
        "- **Postprocessor**: EBO",
        "- **Near-OOD AUROC**: 90.50 ± 0.71",
        "- **ID Accuracy**: 97.00 ± 0.00",
        "- **Outlier Data**: imagined (knn)",
        "- **Model Arch.**: resnet18_32x32",
        "- **Additional Description**: digits, 15 epochs, mean over 2 seeds",
        "- **Results**: 01_dream_ood_ebo/s0_ood.csv, 01_dream_ood_ebo/s1_ood.csv",
    ):
        assert line in issue.splitlines()
    copied = tmp_path / "out" / "01_dream_ood_ebo" / "s1_ood.csv"
    assert copied.read_text() == (tmp_path / "in" / "runs" / "dream-ood" / "s1" / "ebo" / "ood.csv").read_text()


def test_published_rows_are_left_out(tmp_path):
    write_run(tmp_path / "in", dataset__name="cifar10")
    runs = collect([tmp_path / "in"])
    issue = submit(runs, table(runs, published=True), tmp_path / "out").read_text()
    assert issue.count("**Training**") == 1


def told(tmp_path, **names):
    """The text of an entry of the runs below a folder, and what it warns of."""
    runs = collect([tmp_path / "in"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        issue = submit(runs, table(runs), tmp_path / "out").read_text()
    return issue, [str(one.message) for one in caught if issubclass(one.category, InputWarning)]


def lists(folder, test="a.png 0\n", near="b.png -1\n", far="c.png -1\n"):
    """The keys of a run's config that name its lists, and the lists."""
    texts, keys = {"test": test, "near": near, "far": far}, {}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    split = {name: {"imglist_pth": str(folder / f"{name}.txt")} for name in texts}
    keys["dataset__test"] = split["test"]
    keys["ood_dataset"] = {
        "nearood": {"datasets": ["six"], "six": split["near"]},
        "farood": {"datasets": ["flower"], "flower": split["far"]},
    }
    return keys


@pytest.fixture
def known(tmp_path, monkeypatch):
    """Lists that are OpenOOD's of CIFAR-10."""
    keys = lists(tmp_path)
    codes = {name: list_hash(tmp_path / f"{name}.txt") for name in ("test", "near", "far")}
    groups = {"test": {"cifar10": codes["test"]}, "nearood": {"six": codes["near"]}, "farood": {"flower": codes["far"]}}
    monkeypatch.setitem(entries.LISTS, "cifar10", groups)
    return keys


def write_seeds(root, count=3, method="base", **changes):
    for seed in range(count):
        write_run(root / "in", method, seed, dataset__name="cifar10", **changes)


def test_entry_without_doubts(tmp_path, known):
    write_seeds(tmp_path, postprocessor="msp", **known)
    issue, said = told(tmp_path)
    assert not said
    assert "- **Training**: CrossEntropy" in issue.splitlines() and "- **Postprocessor**: MSP" in issue.splitlines()


def test_fewer_than_three_seeds(tmp_path, known):
    write_seeds(tmp_path, 2, postprocessor="msp", **known)
    _, said = told(tmp_path)
    assert len(said) == 1 and "2 of 3 seeds" in said[0]


@pytest.mark.parametrize(("searched", "count"), [(True, 0), (False, 1)])
def test_search_of_hyperparameters(tmp_path, known, searched, count):
    write_seeds(tmp_path, postprocessor="knn", postprocessor__APS_mode=searched, **known)
    _, said = told(tmp_path)
    assert len(said) == count and all("APS_mode" in text for text in said)


def test_list_of_other_content(tmp_path, known):
    write_seeds(tmp_path, postprocessor="msp", **known)
    (tmp_path / "near.txt").write_text("b.png -1\nd.png -1\n")
    _, said = told(tmp_path)
    assert len(said) == 2 and str(tmp_path / "near.txt") in said[0] and "nearood has six" in said[1]


def test_order_of_a_list_does_not_count(tmp_path):
    (tmp_path / "a.txt").write_text("a.png 0\nb.png 1\n")
    (tmp_path / "b.txt").write_text("b.png  1\na.png 0\n\n")
    assert list_hash(tmp_path / "a.txt") == list_hash(tmp_path / "b.txt")


def test_list_that_is_gone(tmp_path, known):
    write_seeds(tmp_path, postprocessor="msp", **known)
    (tmp_path / "far.txt").unlink()
    _, said = told(tmp_path)
    assert len(said) == 1 and "far.txt" in said[0]


def test_data_set_whose_lists_nobody_knows(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "in", seed=seed, postprocessor="msp")
    _, said = told(tmp_path)
    assert len(said) == 1 and "digits" in said[0]


def test_accuracy_is_the_networks(tmp_path, known):
    changes = known | {"postprocessor__APS_mode": True}
    write_seeds(tmp_path, postprocessor="ash", rows=scores(acc=28.67), **changes)
    issue, said = told(tmp_path)
    assert "- **ID Accuracy**: 28.67 ± 0.00" in issue and len(said) == 1 and "msp" in said[0]
    write_seeds(tmp_path, postprocessor="msp", rows=scores(acc=30.67), **known)
    issue, said = told(tmp_path)
    assert issue.count("- **ID Accuracy**: 30.67 ± 0.00") == 2 and not said


def test_every_detector_of_classifiers_has_a_name_there():
    assert {name for name, cls in POSTPROCESSORS.items() if not cls.generative} <= set(DETECTORS)
