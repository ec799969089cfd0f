"""What users rely on when runs become a leaderboard."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from openood_dream import leaderboard, plots, significance
from openood_dream.config import Config, InputError

HEADER = ["dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
NAMES = ["digits", "nearood", "flower", "noise", "farood"]


def scores(near: float = 90.0, far: float = 95.0, acc: float = 97.0) -> list[list[str]]:
    auroc = dict(zip(NAMES, (near, near, far, far, far)))
    return [[name, f"{100 - auroc[name]:.2f}", f"{auroc[name]:.2f}", "80.00", "70.00", f"{acc:.2f}"] for name in NAMES]


def write_run(root: Path, method="base", seed=0, postprocessor="ebo", rows=None, header=HEADER, **changes) -> Path:
    """A run folder as the benchmark leaves it; `changes` are dotted keys of its config, with _ for the dot."""
    folder = root / "runs" / method.replace("/", "-") / f"s{seed}" / postprocessor
    folder.mkdir(parents=True)
    config = Config(
        method=method,
        seed=seed,
        trainer={"name": "oe" if "dataset__oe" in changes else "base"},
        network={"name": "resnet18_32x32"},
        dataset={"name": "digits"},
        optimizer={"num_epochs": 15},
        postprocessor={"name": postprocessor},
    )
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config.at(section.replace("__", ".")) if section else config)[name] = value
    (folder / "config.yml").write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    with open(folder / "ood.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(scores() if rows is None else rows)])
    return folder


def make_table(root: Path, **near_by_method: list[float]):
    for method, values in near_by_method.items():
        for seed, near in enumerate(values):
            write_run(root, method, seed, rows=scores(near))
    return leaderboard.table(leaderboard.collect([root]))


def make_report(out: Path, runs, **changes) -> str:
    given = {"stages": [], "settings": {}, "versions": {}, "figures": {}, "notes": [], "table": leaderboard.table(runs)}
    return leaderboard.report(out, runs=runs, **given | changes).read_text(encoding="utf-8")


def test_a_run_becomes_a_row_with_its_metrics(tmp_path):
    folder = write_run(tmp_path, "dream", 2, "msp", rows=scores(91.5, 96.25, 98.5))
    run = leaderboard.collect([tmp_path]).iloc[0].to_dict()
    expected = {"near_auroc": 91.5, "far_auroc": 96.25, "near_fpr95": 8.5, "far_fpr95": 3.75, "id_acc": 98.5}
    expected |= {"auroc_digits": 91.5, "auroc_flower": 96.25, "auroc_noise": 96.25, "path": str(folder.resolve())}
    expected |= {"method": "dream", "seed": 2, "postprocessor": "msp", "dataset": "digits", "epochs": 15}
    assert expected.items() <= run.items()


def test_the_last_row_counts_where_openood_appended(tmp_path):
    write_run(tmp_path, rows=[*scores(50, 50, 50), *scores(90, 95, 97)])
    run = leaderboard.collect([tmp_path]).iloc[0]
    assert (run.near_auroc, run.far_auroc, run.id_acc, run.auroc_noise) == (90, 95, 97, 95)


def test_a_folder_given_twice_counts_once(tmp_path):
    write_run(tmp_path)
    assert len(leaderboard.collect([tmp_path, tmp_path / "runs"])) == 1


def test_a_folder_without_runs_is_named(tmp_path):
    write_run(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "empty"))):
        leaderboard.collect([tmp_path / "full", tmp_path / "empty"])


def without(name: str) -> list[list[str]]:
    return [row for row in scores() if row[0] != name]


@pytest.mark.parametrize(
    ("rows", "header", "named"),
    [
        (without("farood"), HEADER, "row farood"),
        (without("nearood"), HEADER, "row nearood"),
        ([], HEADER, "row nearood"),
        (scores(), ["dataset", "FPR@95", "AUC", "AUPR_IN", "AUPR_OUT", "ACC"], "column AUROC"),
        ([*without("flower"), ["flower", "1", "high", "1", "1", "97"]], HEADER, "row flower, column AUROC.*'high'"),
        ([*without("farood"), ["farood", "nan", "9", "1", "1", "97"]], HEADER, "row farood, column FPR@95.*'nan'"),
        ([*without("farood"), ["farood", "5.00", "9"]], HEADER, "row farood, column ACC.*None"),
        ([*without("noise"), ["noise", "5.00", "950.0", "1", "1", "97"]], HEADER, "row noise, column AUROC.*0 to 100"),
    ],
)
def test_a_malformed_ood_csv_is_named_with_what_is_wrong(tmp_path, rows, header, named):
    folder = write_run(tmp_path, rows=rows, header=header)
    with pytest.raises(InputError, match=re.escape(str(folder / "ood.csv")) + ".*" + named):
        leaderboard.collect([tmp_path])


@pytest.mark.parametrize(
    "text", [None, "a: [1", "- 1", "method: x\nseed: one\n", "seed: 1\n", "!!python/name:os.open ''"]
)
def test_an_unusable_config_is_named_in_one_line(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "config.yml").unlink()
    if text is not None:
        (folder / "config.yml").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(folder / "config.yml"))) as error:
        leaderboard.collect([tmp_path])
    assert "\n" not in str(error.value)


def test_two_runs_that_claim_to_be_the_same_are_both_named(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    with pytest.raises(InputError) as error:
        leaderboard.collect([tmp_path])
    assert str(first) in str(error.value) and str(second) in str(error.value)


def test_outlier_data_says_what_was_trained_with(tmp_path):
    imagined = {"imglist_pth": "imagined"}
    write_run(tmp_path, "plain")
    write_run(tmp_path, "oe", dataset__oe={"imglist_pth": "./data/train_tin597.txt"})
    write_run(tmp_path, "dream", dataset__oe=imagined, dream={"outliers": {"method": "boundary"}})
    write_run(tmp_path, "default", dataset__oe=imagined, dream={"class_names": "names.txt"})
    write_run(tmp_path, "said", dataset__oe=imagined, outlier_data="digit mixtures")
    write_run(tmp_path, "oal", trainer={"name": "oal"})
    write_run(tmp_path, "vos", trainer={"name": "vos"}, dataset__oe={"imglist_pth": "./data/train_tin597.txt"})
    found = leaderboard.collect([tmp_path]).set_index("method").outlier_data.to_dict()
    assert found == {
        "plain": "none",
        "oe": "train_tin597",
        "dream": "imagined (boundary)",
        "default": "imagined (knn)",
        "oal": "imagined (latents)",
        "said": "digit mixtures",
        "vos": "none",
    }


def test_openoods_own_test_runs_are_read_with_the_training_run_of_their_checkpoint(tmp_path):
    train, test = tmp_path / "cifar10_oe" / "s1", tmp_path / "test" / "s0" / "ood"
    # OpenOOD dumps its Config class, not plain dicts.
    dumped = (
        "!!python/object/new:openood.utils.config.Config\nstate:\n  seed: 7\ndictitems:\n"
        "  seed: {seed}\n  {name}: !!python/object/new:openood.utils.config.Config\n    state: {{}}\n"
        "    dictitems:\n      name: {value}\n  more: &more [1]\n  same: *more\n{rest}"
    )
    for folder in (train, test):
        folder.mkdir(parents=True)
    rest = "  optimizer: {num_epochs: 100}\n  dataset: {oe: {imglist_pth: train_tin597.txt}}\n"
    (train / "config.yml").write_text(dumped.format(seed=1, name="trainer", value="oe", rest=rest))
    rest = f"  network: {{name: resnet18_32x32, checkpoint: {train / 'best.ckpt'}}}\n  dataset: {{name: cifar10}}\n"
    (test / "config.yml").write_text(dumped.format(seed=0, name="postprocessor", value="msp", rest=rest))
    with open(test / "ood.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *scores()])
    run = leaderboard.collect([test]).iloc[0]
    found = (run.method, run.seed, run.epochs, run.outlier_data, run.postprocessor, run.dataset)
    assert found == ("oe", 1, 100, "train_tin597", "msp", "cifar10")


def test_the_table_has_mean_and_sample_deviation_over_seeds(tmp_path):
    values = [90.01, 91.37, 94.2]
    table = make_table(tmp_path, base=values)
    assert list(table) == leaderboard.COLUMNS and len(table) == 1
    assert table.near_auroc[0] == pytest.approx(statistics.mean(values))
    assert table.near_auroc_std[0] == pytest.approx(statistics.stdev(values))
    assert table.far_auroc_std[0] == 0 and table.seeds[0] == 3 and table.notes[0] == ""


def test_the_best_near_ood_auroc_comes_first(tmp_path):
    assert list(make_table(tmp_path, low=[80], high=[95], middle=[90]).method) == ["high", "middle", "low"]


def test_a_row_with_fewer_seeds_says_so(tmp_path):
    table = make_table(tmp_path, full=[90, 91, 92], part=[95, 96]).set_index("method")
    assert table.notes.to_dict() == {"full": "", "part": "fewer seeds (2 of 3)"}


def test_what_several_rows_share_is_said_once_under_the_table(tmp_path):
    table = make_table(tmp_path, full=[90, 91, 92], part=[95, 96], less=[93, 94])
    text = " ".join(leaderboard.render(table, "terminal").split())
    assert text.count("fewer seeds") == 1 and "fewer seeds (2 of 3): part (ebo), less (ebo)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset__name": "cifar10"}, r"dataset \(cifar10, digits\)"),
        ({"network__name": "wrn"}, r"network \(resnet18_32x32, wrn\)"),
        ({"optimizer__num_epochs": 200}, r"epochs \(15, 200\)"),
        ({"optimizer__num_epochs": None}, r"epochs \(15, unknown\)"),
        ({"rows": without("noise")}, r"OOD sets \(digits flower, digits flower noise\)"),
    ],
)
def test_runs_of_different_settings_are_not_mixed(tmp_path, changes, said):
    write_run(tmp_path, "base")
    write_run(tmp_path, "other", **changes)
    runs = leaderboard.collect([tmp_path])
    with pytest.raises(InputError, match=said):
        leaderboard.table(runs)
    assert set(leaderboard.table(runs, allow_mixed=True).method) == {"base", "other"}


def test_mixed_runs_of_one_method_are_never_averaged(tmp_path):
    write_run(tmp_path, "base", 0, rows=scores(80))
    write_run(tmp_path, "base", 1, rows=scores(90), optimizer__num_epochs=200)
    table = leaderboard.table(leaderboard.collect([tmp_path]), allow_mixed=True)
    assert table.near_auroc.tolist() == [90, 80] and table.notes.str.contains("epochs").all()


def test_a_network_that_knows_no_classes_has_a_dash_for_its_accuracy(tmp_path):
    write_run(tmp_path, "base")
    write_run(tmp_path, "frl", rows=[[*row[:5], "nan"] for row in scores(80)])
    runs = leaderboard.collect([tmp_path])
    table = leaderboard.table(runs)
    assert "| frl | ebo | 80.00 | 95.00 | 20.00 | 5.00 | – |" in leaderboard.render(table, "md")
    assert json.loads(leaderboard.render(table, "json"))[1]["id_acc"] is None
    assert r"\textbf{–}" not in leaderboard.render(table, "tex") and "–" in leaderboard.render(table, "terminal")
    assert "frl" in make_report(tmp_path, runs)


def test_markdown_reads_like_openoods_leaderboard(tmp_path):
    text = leaderboard.render(make_table(tmp_path, **{"a|b": [93.74, 93.99, 94.24]}), "md")
    header, rule, row = text.splitlines()
    for name in ("Training", "Postprocessor", "Near-OOD AUROC", "Far-OOD AUROC", "ID Accuracy", "Outlier Data"):
        assert f"| {name} |" in header
    assert "| a\\|b | ebo | 93.99 ± 0.25 | 95.00 ± 0.00 |" in row
    assert header.count("|") == rule.count("|") == row.replace("\\|", "").count("|")


def test_one_seed_is_shown_without_a_deviation(tmp_path):
    table = make_table(tmp_path, base=[93.5])
    assert "| 93.50 |" in leaderboard.render(table, "md")
    assert json.loads(leaderboard.render(table, "json"))[0]["near_auroc_std"] is None
    assert next(csv.DictReader(io.StringIO(leaderboard.render(table, "csv"))))["near_auroc_std"] == ""


def test_json_and_csv_hold_the_same_full_rows(tmp_path):
    table = make_table(tmp_path, base=[90, 91], dream=[95.5, 96.25])
    rows = json.loads(leaderboard.render(table, "json"))
    assert [list(row) for row in rows] == [leaderboard.COLUMNS] * 2
    assert rows[0]["method"] == "dream" and rows[0]["near_auroc"] == 95.875 and rows[0]["seeds"] == 2
    read = list(csv.DictReader(io.StringIO(leaderboard.render(table, "csv"))))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == read


def test_latex_marks_the_best_and_escapes_names(tmp_path):
    text = leaderboard.render(make_table(tmp_path, **{"a_b & 50%": [95], "mid": [93], "low": [90]}), "tex")
    assert r"\toprule" in text and r"\bottomrule" in text and "Near-OOD AUROC" in text
    rows = {line.split(" & ")[0]: line for line in text.splitlines() if line.count(" & ") > 5}
    best = next(line for line in text.splitlines() if line.startswith(r"a\_b \& 50\% & "))
    assert r"\textbf{95.00}" in best and r"\underline{93.00}" in rows["mid"]
    assert r"\textbf{90" not in rows["low"] and r"\underline{90" not in rows["low"]
    # FPR@95 is better when lower, and rows that show the same number share their mark.
    assert r"\textbf{5.00}" in best and text.count(r"\textbf{97.00}") == 3


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_terminal_table_fits_and_keeps_every_near_ood_number(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = make_table(tmp_path, base=[90.11, 91.11], **{"[bold]dream": [95.22, 96.22]})
    text = leaderboard.render(table, "terminal")
    assert max(map(len, text.splitlines())) <= columns
    if columns >= 80:
        assert "90.61 ± 0.71" in text and "95.72 ± 0.71" in text and "[bold]dream" in text
    assert ("FPR@95" in text.split("90.61")[0]) == (columns >= 120)


# ----------------------------------------------------------------------------------------------------------- statistics


def add_scores(folder: Path, shift: float, seed: int = 0, right: float = 0.9) -> None:
    """Scores in a run's folder that tell near and far sets apart by `shift`; the same images for every run."""
    images, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    config = Config(yaml.safe_load((folder / "config.yml").read_text()))
    config.ood_dataset = {"nearood": {"datasets": ["six"]}, "farood": {"datasets": ["flower", "noise"]}}
    (folder / "config.yml").write_text(yaml.safe_dump(config.to_dict()))
    (folder / "scores").mkdir()
    for name, size in {"digits": 300, "six": 200, "flower": 100, "noise": 150}.items():
        conf = images.normal(0, 1, size) + 0.3 * own.normal(0, 1, size) + (shift if name == "digits" else 0)
        label = np.zeros(size, int) if name == "digits" else np.full(size, -1)
        np.savez(folder / "scores" / f"{name}.npz", pred=(own.random(size) > right).astype(int), conf=conf, label=label)


def scored_table(root: Path, **shifts: float):
    """The table of methods with two seeds each, whose ood.csv holds the AUROC of their scores."""
    for number, (method, shift) in enumerate(shifts.items()):
        for seed in (0, 1):
            folder = write_run(root, method, seed)
            add_scores(folder, shift, 2 * number + seed)
            inside, outside = (leaderboard.read_scores(folder / "scores" / f"{n}.npz")[1] for n in ("digits", "six"))
            near = 100 * np.mean([(inside > b).mean() for b in outside])
            with open(folder / "ood.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([HEADER, *scores(round(near, 2))])
    return leaderboard.table(leaderboard.collect([root]))


def test_intervals_hold_the_mean_over_seeds_of_each_resample(tmp_path):
    row = scored_table(tmp_path, base=1.0).iloc[0]
    assert row.near_auroc_low < row.near_auroc < row.near_auroc_high < row.near_auroc_low + 10
    draws = []
    for seed in (0, 1):
        of = {n: leaderboard.read_scores(tmp_path / "runs" / "base" / f"s{seed}" / "ebo" / "scores" / f"{n}.npz")
              for n in ("digits", "six")}  # fmt: skip
        draws.append(significance.draws("digits", of["digits"], {"near": {"six": of["six"][1]}})["near_auroc"])
    assert (row.near_auroc_low, row.near_auroc_high) == pytest.approx(significance.interval(np.mean(draws, axis=0)))


def test_what_is_surely_better_or_worse_than_base_is_marked_and_what_may_be_chance_is_not(tmp_path):
    table = scored_table(tmp_path, base=1.0, better=1.6, worse=0.5, same=1.02).set_index("method")
    assert table.p_base["better"] < 0.05 and table.p_base["worse"] < 0.05 and table.p_base["same"] > 0.05
    assert table.gain_over_base["better"] == pytest.approx(table.near_auroc["better"] - table.near_auroc["base"])
    assert pd.isna(table.p_base["base"]) and pd.isna(table.p_best["better"]) and table.p_best["base"] < 0.05
    text = leaderboard.render(table.reset_index(), "md")
    marks = {line.split(" | ")[0][2:]: [mark for mark in "▲▼≈" if mark in line] for line in text.splitlines()[2:6]}
    assert marks == {"better": ["▲"], "worse": ["▼"], "base": [], "same": []} and "significantly" in text
    assert r"$^{+}$" in leaderboard.render(table.reset_index(), "tex")


def test_what_is_as_good_as_the_best_is_marked(tmp_path):
    text = leaderboard.render(scored_table(tmp_path, base=0.2, first=1.5, second=1.5), "md")
    assert [line.split(" | ")[0] for line in text.splitlines() if "▲≈" in line] in (["| second"], ["| first"])


def test_all_that_are_equal_to_the_best_are_marked(tmp_path):
    text = leaderboard.render(scored_table(tmp_path, base=0.2, first=99, second=99, third=99), "md")
    assert sum("▲≈" in line for line in text.splitlines()) == 2


def test_runs_without_scores_have_no_statistics(tmp_path):
    table = make_table(tmp_path, base=[90, 91], other=[95, 96])
    assert table[["near_auroc_low", "p_base", "p_best"]].isna().all(axis=None)
    assert "significantly" not in leaderboard.render(table, "md")


def test_damaged_scores_are_named(tmp_path):
    folder = write_run(tmp_path)
    add_scores(folder, 1.0)
    (folder / "scores" / "six.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"six\.npz: expected scores with pred, conf and label"):
        leaderboard.table(leaderboard.collect([tmp_path]))


# ---------------------------------------------------------------------------------------- order, other rows, submission


def test_any_column_can_order_the_rows(tmp_path):
    write_run(tmp_path, "a", rows=scores(90, 80, 99))
    write_run(tmp_path, "b", rows=scores(80, 95, 98))
    runs = leaderboard.collect([tmp_path])

    def order(column: str) -> str:
        return "".join(leaderboard.table(runs, sort=column).method)

    assert [order(column) for column in ("near_auroc", "far_auroc", "far_fpr95", "id_acc", "method")] == [
        "ab", "ba", "ba", "ab", "ab",
    ]  # fmt: skip
    with pytest.raises(InputError, match="sort: no column 'auroc'; expected one of method, .*near_auroc"):
        order("auroc")


def write_spectrum(folder: Path, near: float, shifted: float) -> None:
    with open(folder / "fsood.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *scores(near)])
    with open(folder / "csid.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [HEADER, *([name, "-", "-", "-", "-", f"{shifted:.2f}"] for name in ("turned", "csid"))]
        )


def test_the_full_spectrum_has_columns_where_a_run_has_it(tmp_path):
    assert not set(leaderboard.SPECTRUM) & set(make_table(tmp_path / "plain", base=[90]))
    write_spectrum(write_run(tmp_path / "full"), 70.5, 61.25)
    runs = leaderboard.collect([tmp_path / "full"])
    table = leaderboard.table(runs)
    assert (table.near_fs_auroc[0], table.csid_acc[0], runs.acc_turned[0]) == (70.5, 61.25, 61.25)
    text = leaderboard.render(table, "md")
    assert "Near-FSOOD AUROC" in text and "| 70.50 |" in text
    assert "61.25" in Page(make_report(tmp_path / "full", runs)).text


def test_the_report_shows_counts_in_full_and_shares_to_three_digits(tmp_path):
    write_run(tmp_path)
    judged = pd.DataFrame({"class": ["cat"], "images": [10000], "own class": [66.6667], "dropped": [pd.NA]})
    html = make_report(tmp_path, leaderboard.collect([tmp_path]), judged={"set": judged.astype({"dropped": "Int64"})})
    row = html.partition("<td>cat</td>")[2].partition("</tr>")[0]
    assert re.findall(r'<td class="number">(.*)</td>', row) == ["10000", "66.7", "–"]


def test_openoods_full_spectrum_runs_are_joined_to_the_others(tmp_path):
    write_run(tmp_path / "ood", rows=scores(90))
    write_run(tmp_path / "fsood", rows=scores(70), evaluator={"ood_scheme": "fsood"})
    table = leaderboard.table(leaderboard.collect([tmp_path]))
    assert (len(table), table.near_auroc[0], table.near_fs_auroc[0]) == (1, 90, 70)
    with pytest.raises(InputError, match="a full-spectrum run alone"):
        leaderboard.collect([tmp_path / "fsood"])


def test_failures_are_in_their_rows(tmp_path):
    write_run(tmp_path, "base", 0)
    about = {
        "postprocessor": "ebo",
        "seed": 1,
        "network": "resnet18_32x32",
        "dataset": "digits",
        "outlier_data": "none",
    }
    failures = [{"method": "base", "text": "disk full", **about}, {"method": "oe", "text": "no <loss>", **about}]
    runs = leaderboard.collect([tmp_path])
    table = leaderboard.table(runs, failures=failures).set_index("method")
    assert table.notes["base"] == "seed 1 failed: disk full" and table.seeds["base"] == 1
    assert (
        table.notes["oe"] == "seed 1 failed: no <loss>" and pd.isna(table.near_auroc["oe"]) and table.seeds["oe"] == 0
    )
    for fmt in ("md", "csv", "json", "tex", "terminal"):
        assert "oe" in leaderboard.render(table.reset_index(), fmt)
    assert "no &lt;loss&gt;" in make_report(tmp_path, runs, table=table.reset_index())


def test_published_numbers_are_always_marked_and_never_compared(tmp_path):
    write_run(tmp_path, "base", dataset__name="cifar10")
    runs = leaderboard.collect([tmp_path])
    table = leaderboard.table(runs, published=True)
    oal = table[table.method == "OAL"].iloc[0]
    assert (oal.near_auroc, oal.far_auroc, oal.id_acc) == (92.99, 96.28, 94.71)
    assert oal.published and oal.notes.startswith("published (") and pd.isna(oal.p_base)
    for fmt in ("md", "tex", "terminal"):
        assert leaderboard.render(table, fmt).count("(published)") == table.published.sum() == 3
    assert "OAL (published)" in Page(make_report(tmp_path, runs, table=table)).text
    with pytest.raises(InputError, match="no published numbers for digits; there are some for cifar10, cifar100"):
        write_run(tmp_path / "digits")
        leaderboard.table(leaderboard.collect([tmp_path / "digits"]), published=True)


def test_a_submission_has_every_csv_and_the_filled_text(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "in", "dream/ood", seed, rows=scores(90 + seed), dataset__oe={"imglist_pth": "imagined"})
    runs = leaderboard.collect([tmp_path / "in"])
    issue = leaderboard.submit(runs, leaderboard.table(runs), tmp_path / "out").read_text()
    for line in (
        "Title: [leaderboard] dream/ood",
        "- **Training**: dream/ood",
        "- **Postprocessor**: ebo",
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


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="'xml'.*md, csv, json, tex, terminal"):
        leaderboard.render(make_table(tmp_path, base=[90]), "xml")


class Page(HTMLParser):
    """The visible text, and the tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_names_in_the_report_are_text_never_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    write_run(tmp_path, evil, dataset__oe={"imglist_pth": f"{evil[:8]}.txt"})
    runs = leaderboard.collect([tmp_path])
    png = plots.training_curves({evil: [{"epoch": 1, "loss": 1.0, "val_acc": 90.0}]})
    html = make_report(
        tmp_path, runs, stages=[{"name": evil, "hash": evil}], settings={"class_names": [evil]}, versions={evil: evil},
        figures={evil: png}, notes=[evil], commands=[evil],
    )  # fmt: skip
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own, which sorts
    assert evil not in html and page.text.count(evil) >= 8


def test_the_report_needs_nothing_but_itself(tmp_path):
    write_run(tmp_path)
    png = plots.training_curves({"base": [{"epoch": 1, "loss": 1.0, "val_acc": 90.0}]})
    html = make_report(tmp_path, leaderboard.collect([tmp_path]), figures={"training_curves": png})
    tags = Page(html).tags
    assert [attrs["src"][:22] for _, attrs in tags if "src" in attrs] == ["data:image/png;base64,"]
    assert not any("href" in attrs for _, attrs in tags) and "@import" not in html and "url(" not in html


def test_the_report_tells_how_it_was_made(tmp_path):
    write_run(tmp_path, "base", 0)
    write_run(tmp_path, "base", 4)
    text = Page(
        make_report(
            tmp_path,
            leaderboard.collect([tmp_path]),
            stages=[{"name": "generator", "seconds": 184.2, "reused": True, "hash": "3f2a9c"}, {"name": "train"}],
            settings=Config({"dream": {"space": {"epochs": 7}}, "out": tmp_path}),
            versions={"torch": "2.15.0"},
            figures={"roc_curves": plots.roc_curves({"base": {"id": [1, 2], "near": [0, 1]}})},
            notes=["a small benchmark"],
            commands=["openood-dream quickstart --out x"],
        )
    ).text
    for part in ("generator", "3 min 4 s", "3f2a9c", "space:\n    epochs: 7", "2.15.0", "seeds 0, 4"):
        assert part in text
    assert "a small benchmark" in text and "openood-dream quickstart --out x" in text and "upper left corner" in text


def test_the_report_shows_the_numbers_of_the_table(tmp_path):
    for seed, near in enumerate((93.74, 93.99, 94.24)):
        write_run(tmp_path, "dream", seed, rows=scores(near), dataset__oe={"imglist_pth": "imagined"})
        write_run(tmp_path, "base", seed, rows=scores(near - 2))
    text = " ".join(Page(make_report(tmp_path, leaderboard.collect([tmp_path]))).text.split())
    assert "found best by dream with ebo: AUROC 93.99 ± 0.25 over 3 seeds" in text
    assert "best without imagined outliers is base with ebo: 91.99 ± 0.25" in text


@pytest.mark.parametrize("epochs, words", [(1, ", 1 epoch,"), (2, ", 2 epochs,")])
def test_the_report_counts_in_english(tmp_path, epochs, words):
    write_run(tmp_path, optimizer__num_epochs=epochs)
    assert words in " ".join(Page(make_report(tmp_path, leaderboard.collect([tmp_path]))).text.split())


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    write_run(tmp_path)
    good = leaderboard.collect([tmp_path])
    make_report(tmp_path, good, notes=["old"])
    write_run(tmp_path, "other", dataset__name="cifar10")
    with pytest.raises(InputError):
        make_report(tmp_path, leaderboard.collect([tmp_path]))
    assert "old" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_the_report_goes_where_it_is_told(tmp_path):
    write_run(tmp_path)
    runs = leaderboard.collect([tmp_path])
    make_report(tmp_path / "new" / "board.html", runs)
    assert (tmp_path / "new" / "board.html").is_file()
