"""Seeds of one run stand in one row, and only they."""

from __future__ import annotations

import warnings

import pytest
from finished_runs import scores, write_run

from openood_dream.errors import InputWarning
from openood_dream.reports.runs import collect
from openood_dream.reports.table import table


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
    write_run(tmp_path / "b", "dream_ood", 0, record=record(sigma=0.3))
    with pytest.warns(InputWarning):
        found = table(collect([tmp_path / "a", tmp_path / "b"]))
    assert found.seeds.tolist() == [1, 1]


def test_runs_of_openood_are_told_apart_by_their_config(tmp_path):
    for seed, beta in ((0, 1.0), (1, 2.5)):
        folder = write_run(tmp_path, "dream_ood", seed, trainer__beta=beta, dataset__train={"data_dir": f"d{seed}"})
        (folder.parent / "train.json").unlink()
    with pytest.warns(InputWarning, match="runs differ in trainer.beta;"):
        assert len(rows(tmp_path)) == 2


def test_what_is_doubtful_about_a_run_stands_in_its_row(tmp_path):
    write_run(tmp_path, "vos", 0, record=record(warnings=["outliers took part in no step"]))
    assert rows(tmp_path).notes.tolist() == ["seed 0: outliers took part in no step"]


def test_a_trained_run_without_scores_is_named(tmp_path):
    write_run(tmp_path, "base")
    (write_run(tmp_path, "oe") / "ood.csv").unlink()
    with pytest.warns(InputWarning, match="runs/oe/s0: trained and not scored"):
        assert rows(tmp_path).method.tolist() == ["base"]
