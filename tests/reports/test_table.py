"""Runs to a table: means, deviations, statistics, and the order of the rows."""

from __future__ import annotations

import statistics

import numpy as np
import pandas as pd
import pytest
from finished_runs import make_table, scored_table, scores, without, write_csv, write_run, write_scores

from openood_dream.errors import InputError
from openood_dream.evaluators import significance
from openood_dream.reports.columns import is_spectrum
from openood_dream.reports.runs import collect, read_scores
from openood_dream.reports.table import table

COLUMNS = """
method postprocessor near_auroc far_auroc near_fpr95 far_fpr95 id_acc seeds outlier_data network notes
near_auroc_std far_auroc_std near_fpr95_std far_fpr95_std id_acc_std near_auroc_low near_auroc_high far_auroc_low
far_auroc_high near_fpr95_low near_fpr95_high far_fpr95_low far_fpr95_high id_acc_low id_acc_high
gain_over_base p_base p_best published
"""


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    values = [90.01, 91.37, 94.2]
    found = make_table(tmp_path, base=values)
    assert list(found) == COLUMNS.split() and len(found) == 1
    assert found.near_auroc[0] == pytest.approx(statistics.mean(values))
    assert found.near_auroc_std[0] == pytest.approx(statistics.stdev(values))
    assert found.far_auroc_std[0] == 0 and found.seeds[0] == 3 and found.notes[0] == ""


def test_best_near_ood_auroc_comes_first(tmp_path):
    assert list(make_table(tmp_path, low=[80], high=[95], middle=[90]).method) == ["high", "middle", "low"]


def test_fewer_seeds_are_noted(tmp_path):
    found = make_table(tmp_path, full=[90, 91, 92], part=[95, 96]).set_index("method")
    assert found.notes.to_dict() == {"full": "", "part": "fewer seeds (2 of 3)"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset__name": "cifar10"}, r"dataset \(cifar10, digits\)"),
        ({"network__name": "wrn"}, r"network \(resnet18_32x32, wrn\)"),
        ({"optimizer__num_epochs": 200}, r"epochs \(15, 200\)"),
        ({"optimizer__num_epochs": None}, r"epochs \(15, unknown\)"),
        ({"rows": without("noise")}, r"OOD sets \(digits flower, digits flower noise\)"),
    ],
)
def test_different_settings_are_not_mixed(tmp_path, changes, named):
    write_run(tmp_path, "base")
    write_run(tmp_path, "other", **changes)
    runs = collect([tmp_path])
    with pytest.raises(InputError, match=named):
        table(runs)
    assert set(table(runs, allow_mixed=True).method) == {"base", "other"}


def test_mixed_runs_of_a_method_are_not_averaged(tmp_path):
    write_run(tmp_path, "base", 0, rows=scores(80))
    write_run(tmp_path, "base", 1, rows=scores(90), optimizer__num_epochs=200)
    found = table(collect([tmp_path]), allow_mixed=True)
    assert found.near_auroc.tolist() == [90, 80] and found.notes.str.contains("epochs").all()


def test_intervals_are_of_the_mean_over_seeds(tmp_path):
    row = scored_table(tmp_path, base=1.0).iloc[0]
    assert row.near_auroc_low < row.near_auroc < row.near_auroc_high < row.near_auroc_low + 10
    draws = []
    for seed in (0, 1):
        folder = tmp_path / "runs" / "base" / f"s{seed}" / "ebo" / "scores"
        digits, six = (read_scores(folder / f"{name}.npz") for name in ("digits", "six"))
        draws.append(significance.draws("digits", digits, {"near": {"six": six[1]}})["near_auroc"])
    assert (row.near_auroc_low, row.near_auroc_high) == pytest.approx(significance.interval(np.mean(draws, axis=0)))


def test_p_values_against_base_and_best(tmp_path):
    found = scored_table(tmp_path, base=1.0, better=1.6, worse=0.5, same=1.02).set_index("method")
    assert found.p_base["better"] < 0.05 and found.p_base["worse"] < 0.05 and found.p_base["same"] > 0.05
    assert found.gain_over_base["better"] == pytest.approx(found.near_auroc["better"] - found.near_auroc["base"])
    assert pd.isna(found.p_base["base"]) and pd.isna(found.p_best["better"]) and found.p_best["base"] < 0.05


def test_runs_without_scores_have_no_statistics(tmp_path):
    found = make_table(tmp_path, base=[90, 91], other=[95, 96])
    assert found[["near_auroc_low", "p_base", "p_best"]].isna().all(axis=None)


def test_damaged_scores_are_named(tmp_path):
    folder = write_run(tmp_path)
    write_scores(folder, 1.0)
    (folder / "scores" / "six.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"six\.npz"):
        table(collect([tmp_path]))


@pytest.mark.parametrize(
    ("column", "order"),
    [("near_auroc", "ab"), ("far_auroc", "ba"), ("far_fpr95", "ba"), ("id_acc", "ab"), ("method", "ab")],
)
def test_any_column_orders_the_rows(tmp_path, column, order):
    write_run(tmp_path, "a", rows=scores(90, 80, 99))
    write_run(tmp_path, "b", rows=scores(80, 95, 98))
    assert "".join(table(collect([tmp_path]), sort=column).method) == order


def test_unknown_column(tmp_path):
    write_run(tmp_path)
    with pytest.raises(InputError, match="sort: .*'auroc'.*near_auroc"):
        table(collect([tmp_path]), sort="auroc")


def test_full_spectrum_has_columns_where_a_run_has_it(tmp_path):
    assert not any(map(is_spectrum, make_table(tmp_path / "plain", base=[90])))
    folder = write_run(tmp_path / "full")
    write_csv(folder / "fsood.csv", scores(70.5))
    write_csv(folder / "csid.csv", [[name, "-", "-", "-", "-", "61.25"] for name in ("turned", "csid")])
    found = table(collect([tmp_path / "full"]))
    assert (found.near_fs_auroc[0], found.csid_acc[0]) == (70.5, 61.25)


def test_failures_are_noted_in_their_rows(tmp_path):
    write_run(tmp_path, "base", 0)
    about = {
        "postprocessor": "ebo",
        "seed": 1,
        "network": "resnet18_32x32",
        "dataset": "digits",
        "outlier_data": "none",
    }
    failures = [{"method": "base", "text": "disk full", **about}, {"method": "oe", "text": "no <loss>", **about}]
    found = table(collect([tmp_path]), failures=failures).set_index("method")
    assert found.notes["base"] == "seed 1 failed: disk full" and found.seeds["base"] == 1
    assert (
        found.notes["oe"] == "seed 1 failed: no <loss>" and pd.isna(found.near_auroc["oe"]) and found.seeds["oe"] == 0
    )


def test_published_numbers_are_marked_and_never_compared(tmp_path):
    write_run(tmp_path, "base", dataset__name="cifar10")
    found = table(collect([tmp_path]), published=True)
    oal = found[found.method == "OAL"].iloc[0]
    assert (oal.near_auroc, oal.far_auroc, oal.id_acc) == (92.99, 96.28, 94.71)
    assert oal.published and oal.notes.startswith("published (") and pd.isna(oal.p_base)


def test_no_published_numbers_for_the_data(tmp_path):
    write_run(tmp_path)
    with pytest.raises(InputError, match="published: .*digits.*cifar10, cifar100"):
        table(collect([tmp_path]), published=True)
