"""Seeds of one run stand in one row, and only they."""

from __future__ import annotations

import shutil
import warnings

import pytest
from finished_runs import make_report, scores, write_run

from openood_dream.errors import InputWarning
from openood_dream.reports.runs import collect
from openood_dream.reports.submission import submit
from openood_dream.reports.table import table
from openood_dream.store.files import write_json


def record(sigma: float = 0.15, outliers: str = "a1", **more) -> dict:
    return {"inputs": {"seed": 0, "outliers": outliers}, "dream": {"outliers": {"sigma": sigma}}, "code": "1.0"} | more


def rows(root):
    return table(collect([root]))


def test_seeds_of_one_configuration_are_one_row(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "dream_ood", seed, record=record() | {"inputs": {"seed": seed, "outliers": "a1"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rows(tmp_path)
    assert found.seeds.tolist() == [3] and found.notes.tolist() == [""]


def test_each_seed_may_begin_with_weights_of_its_own(tmp_path):
    def begun(seed: int, start: str) -> dict:
        return {"inputs": {"seed": seed, "network": {"checkpoint": start}}, "dream": {}, "code": "1.0"}

    for seed, start in enumerate("abc"):
        write_run(tmp_path / "own", "oal", seed, record=begun(seed, start))
    for seed, start in enumerate("aab"):
        write_run(tmp_path / "mixed", "oal", seed, record=begun(seed, start))
    assert rows(tmp_path / "own").seeds.tolist() == [3]
    with pytest.warns(InputWarning, match="network.checkpoint"):
        assert sorted(rows(tmp_path / "mixed").seeds) == [1, 2]


@pytest.mark.parametrize(
    "other, key",
    [
        (record(sigma=0.3, outliers="b2"), "dream.outliers.sigma 0.3"),
        (record(outliers="b2"), "outliers b2"),
        (record(code="1.1"), "code 1.1"),
        (record(inputs={"seed": 0, "outliers": "a1", "optimizer": {"lr": 0.5}}), "optimizer.lr 0.5"),
    ],
)
def test_other_runs_have_rows_of_their_own(tmp_path, other, key):
    write_run(tmp_path, "dream_ood", 0, record=other, rows=scores(90))
    for seed in (1, 2):
        write_run(tmp_path, "dream_ood", seed, record=record(), rows=scores(80))
    with pytest.warns(InputWarning, match=key.split()[0]):
        found = rows(tmp_path)
    assert found.near_auroc.tolist() == [90, 80] and found.seeds.tolist() == [1, 2]
    assert key in found.notes[0] and key.split()[0] in found.notes[1]


def test_the_same_seed_of_two_configurations(tmp_path):
    write_run(tmp_path / "a", "dream_ood", 0, record=record())
    write_run(tmp_path / "b", "dream_ood", 0, record=record(sigma=0.3, outliers="b2"))
    with pytest.warns(InputWarning):
        found = table(collect([tmp_path / "a", tmp_path / "b"]))
    assert found.seeds.tolist() == [1, 1]


def test_runs_of_openood_are_told_apart_by_their_config(tmp_path):
    for seed, beta in ((0, 1.0), (1, 2.5)):
        folder = write_run(tmp_path, "dream_ood", seed, trainer__beta=beta, dataset__train={"data_dir": f"d{seed}"})
        (folder.parent / "train.json").unlink()
    with pytest.warns(InputWarning, match="runs differ in trainer.beta;"):
        assert len(rows(tmp_path)) == 2


def test_settings_that_led_to_the_same_outliers_tell_nothing_apart(tmp_path):
    for seed, sigma in enumerate((0.15, 0.3)):
        write_run(tmp_path, "dream_ood", seed, record=record(sigma=sigma))
    assert rows(tmp_path).seeds.tolist() == [2]


def test_runs_that_agree_in_all_that_is_named_are_told_apart_all_the_same(tmp_path):
    for seed, (sigma, outliers) in enumerate([(0.15, "a1"), (0.3, "b2"), (0.15, "c3")]):
        write_run(tmp_path, "dream_ood", seed, record=record(sigma, outliers))
    with pytest.warns(InputWarning, match="outliers"):
        assert rows(tmp_path).seeds.tolist() == [1, 1, 1]


def test_scores_of_other_detectors_are_told_apart(tmp_path):
    for seed, k in enumerate((1, 50)):
        folder = write_run(tmp_path, "base", seed, record=record())
        inputs = {"run": f"base-{seed}", "postprocessor": {"name": "knn", "K": k}}
        write_json(folder / "evaluate.json", {"hash": f"{k}", "inputs": inputs, "code": "1.0"})
    with pytest.warns(InputWarning, match=r"postprocessor\.K"):
        assert set(rows(tmp_path).notes.str.extract("(postprocessor.K [0-9]+)")[0]) == {
            "postprocessor.K 1",
            "postprocessor.K 50",
        }


@pytest.fixture
def two(tmp_path):
    """Runs of two sigmas, of 90 and of 80 percent."""
    for seed, (sigma, outliers) in enumerate([(0.15, "a1"), (0.3, "b2")]):
        write_run(tmp_path / "in", "dream_ood", seed, record=record(sigma, outliers), rows=scores(90 - 10 * seed))
    return collect([tmp_path / "in"])


def test_an_entry_has_the_files_of_its_own_runs(two, tmp_path):
    with pytest.warns(InputWarning):
        issue = submit(two, table(two), tmp_path / "out").read_text()
    assert "- **Results**: 01_dream_ood_ebo/s0_ood.csv\n" in issue and "02_dream_ood_ebo/s1_ood.csv\n" in issue


def test_page_averages_no_set_over_them(two, tmp_path):
    with pytest.warns(InputWarning):
        html = make_report(tmp_path, two)
    per_set = html[html.index("flower") :]
    assert "90.00" in per_set and "80.00" in per_set and "85.00" not in per_set
    assert "dream.outliers.sigma 0.3" in per_set


def test_what_is_doubtful_about_a_run_stands_in_its_row(tmp_path):
    for seed in range(3):
        texts = ["the space is at chance (16.7 %); raise dream.space.epochs"] + ["no step had outliers"] * (seed == 1)
        write_run(tmp_path, "vos", seed, record=record(warnings=texts))
    assert rows(tmp_path).notes.tolist() == [
        "seeds 0, 1, 2: the space is at chance (16.7 %); seed 1: no step had outliers"
    ]


def test_a_trained_run_without_scores_is_named(tmp_path):
    write_run(tmp_path, "base")
    (write_run(tmp_path, "oe") / "ood.csv").unlink()
    with pytest.warns(InputWarning, match="runs/oe/s0: trained and not scored"):
        assert rows(tmp_path).method.tolist() == ["base"]


def test_an_unfinished_run_is_named(tmp_path):
    write_run(tmp_path, "base")
    write_json(tmp_path / "runs" / "oe" / "s0" / "training.json", {"hash": "a"})
    with pytest.warns(InputWarning, match="runs/oe/s0: not finished"):
        assert rows(tmp_path).method.tolist() == ["base"]


def test_a_run_that_was_scored_elsewhere_is_no_omission(tmp_path):
    trained = write_run(tmp_path / "trained").parent
    write_run(tmp_path / "scored", network__checkpoint=str(trained / "best.ckpt"))
    (tmp_path / "scored" / "runs" / "base" / "s0" / "train.json").unlink()
    shutil.rmtree(trained / "ebo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(rows(tmp_path)) == 1
