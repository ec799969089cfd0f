"""Tables as text in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest
from finished_runs import make_table, scored_table, scores, write_csv, write_run

from openood_dream.errors import InputError
from openood_dream.reports.render import render, render_quality
from openood_dream.reports.runs import collect
from openood_dream.reports.table import table

FORMATS = ("md", "csv", "json", "tex", "terminal")


def test_notes_that_rows_share_stand_once_under_the_table(tmp_path):
    found = make_table(tmp_path, full=[90, 91, 92], part=[95, 96], less=[93, 94])
    text = " ".join(render(found, "terminal").split())
    assert text.count("fewer seeds") == 1 and "fewer seeds (2 of 3): part (ebo), less (ebo)" in text


def test_network_without_classes_has_a_dash_for_its_accuracy(tmp_path):
    write_run(tmp_path, "base")
    write_run(tmp_path, "frl", rows=[[*row[:5], "nan"] for row in scores(80)])
    found = table(collect([tmp_path]))
    assert "| frl | ebo | 80.00 | 95.00 | 20.00 | 5.00 | – |" in render(found, "md")
    assert json.loads(render(found, "json"))[1]["id_acc"] is None
    assert r"\textbf{–}" not in render(found, "tex") and "–" in render(found, "terminal")


def test_markdown_reads_like_openoods_leaderboard(tmp_path):
    header, rule, row = render(make_table(tmp_path, **{"a|b": [93.74, 93.99, 94.24]}), "md").splitlines()
    for name in ("Training", "Postprocessor", "Near-OOD AUROC", "Far-OOD AUROC", "ID Accuracy", "Outlier Data"):
        assert f"| {name} |" in header
    assert "| a\\|b | ebo | 93.99 ± 0.25 | 95.00 ± 0.00 |" in row
    assert header.count("|") == rule.count("|") == row.replace("\\|", "").count("|")


def test_one_seed_has_no_deviation(tmp_path):
    found = make_table(tmp_path, base=[93.5])
    assert "| 93.50 |" in render(found, "md")
    assert json.loads(render(found, "json"))[0]["near_auroc_std"] is None
    assert next(csv.DictReader(io.StringIO(render(found, "csv"))))["near_auroc_std"] == ""


def test_json_and_csv_hold_the_same_rows(tmp_path):
    found = make_table(tmp_path, base=[90, 91], dream=[95.5, 96.25])
    rows = json.loads(render(found, "json"))
    assert [list(row) for row in rows] == [list(found)] * 2
    assert rows[0]["method"] == "dream" and rows[0]["near_auroc"] == 95.875 and rows[0]["seeds"] == 2
    read = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == read


def test_latex_marks_the_best_and_escapes_names(tmp_path):
    text = render(make_table(tmp_path, **{"a_b & 50%": [95], "mid": [93], "low": [90]}), "tex")
    assert r"\toprule" in text and r"\bottomrule" in text and "Near-OOD AUROC" in text
    rows = {line.split(" & ")[0]: line for line in text.splitlines() if line.count(" & ") > 5}
    best = next(line for line in text.splitlines() if line.startswith(r"a\_b \& 50\% & "))
    assert r"\textbf{95.00}" in best and r"\underline{93.00}" in rows["mid"]
    assert r"\textbf{90" not in rows["low"] and r"\underline{90" not in rows["low"]
    # FPR@95 is better when lower, and rows that show the same number share their mark.
    assert r"\textbf{5.00}" in best and text.count(r"\textbf{97.00}") == 3


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_terminal_table_fits_and_keeps_near_ood_numbers(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render(make_table(tmp_path, base=[90.11, 91.11], **{"[bold]dream": [95.22, 96.22]}), "terminal")
    assert max(map(len, text.splitlines())) <= columns
    if columns >= 80:
        assert "90.61 ± 0.71" in text and "95.72 ± 0.71" in text and "[bold]dream" in text
    assert ("FPR@95" in text.split("90.61")[0]) == (columns >= 120)


def test_what_is_surely_better_or_worse_than_base_is_marked(tmp_path):
    found = scored_table(tmp_path, base=1.0, better=1.6, worse=0.5, same=1.02)
    text = render(found, "md")
    marks = {line.split(" | ")[0][2:]: [mark for mark in "▲▼≈" if mark in line] for line in text.splitlines()[2:6]}
    assert marks == {"better": ["▲"], "worse": ["▼"], "base": [], "same": []} and "significantly" in text
    assert r"$^{+}$" in render(found, "tex")


@pytest.mark.parametrize("shifts", [{"first": 1.5, "second": 1.5}, {"first": 99, "second": 99, "third": 99}])
def test_what_is_as_good_as_the_best_is_marked(tmp_path, shifts):
    lines = render(scored_table(tmp_path, base=0.2, **shifts), "md").splitlines()
    assert sum("▲≈" in line for line in lines) == len(shifts) - 1 and "▲≈" not in lines[2]


def test_runs_without_scores_have_no_legend_of_marks(tmp_path):
    assert "significantly" not in render(make_table(tmp_path, base=[90, 91], other=[95, 96]), "md")


def test_full_spectrum_is_shown_where_a_run_has_it(tmp_path):
    write_csv(write_run(tmp_path) / "fsood.csv", scores(70.5))
    text = render(table(collect([tmp_path])), "md")
    assert "Near-FSOOD AUROC" in text and "| 70.50 |" in text


def test_rows_without_numbers_are_shown(tmp_path):
    write_run(tmp_path)
    failure = {"method": "oe", "postprocessor": "ebo", "seed": 1, "network": "resnet18_32x32", "text": "no loss"}
    found = table(collect([tmp_path]), failures=[failure | {"dataset": "digits", "outlier_data": "none"}])
    assert all("oe" in render(found, fmt) for fmt in FORMATS)


def test_published_rows_say_so(tmp_path):
    write_run(tmp_path, dataset__name="cifar10")
    found = table(collect([tmp_path]), published=True)
    for fmt in ("md", "tex", "terminal"):
        assert render(found, fmt).count("(published)") == found.published.sum() == 4


def test_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="'xml'.*md, csv, json, tex, terminal"):
        render(make_table(tmp_path, base=[90]), "xml")


def test_quality_has_a_row_per_class(dream, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = render_quality(dream.quality)
    lines = [line.split() for line in text.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in dream.names] == [[name, "4"] for name in dream.names]
    assert "space's classifier" in text and f"{dream.settings.quality.k}-NN" in text


# what colours a terminal, ends a line, turns text around, or is a formula to a spreadsheet
NASTY = ["\x1b[31mred", "\x9b31mred", "two\nlines", "b\u202ea", "bell\x07"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_names_do_nothing_to_a_terminal(tmp_path, fmt):
    for number, name in enumerate(NASTY):
        write_run(tmp_path, f"m{number}", network__name=name, outlier_data=name)
    found = table(collect([tmp_path]), True)
    found["notes"] = NASTY
    text = render(found, fmt)
    assert not set(text) & set("\x1b\x9b\u202e\x07") and "two\nlines" not in text


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_csv_holds_no_formulas(tmp_path, name):
    write_run(tmp_path, outlier_data=name)
    (row,) = csv.DictReader(io.StringIO(render(table(collect([tmp_path])), "csv")))
    assert row["outlier_data"] == f"'{name}" and row["near_auroc"] == "90.0"
