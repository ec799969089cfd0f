"""The HTML report: one file that shows names as text, and the numbers of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from finished_runs import Page, make_report, scores, write_csv, write_run

from openood_dream.errors import InputError
from openood_dream.reports import plots
from openood_dream.reports.runs import collect
from openood_dream.reports.table import table


def figure(name: str = "base") -> bytes:
    return plots.training_curves({name: [{"epoch": 1, "loss": 1.0, "val_acc": 90.0}]})


def text_of(html: str) -> str:
    return " ".join(Page(html).text.split())


def test_names_are_text_never_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    write_run(tmp_path, evil, outlier_data=evil)
    html = make_report(
        tmp_path,
        collect([tmp_path]),
        stages=[{"name": evil, "hash": evil}],
        settings={"class_names": [evil]},
        versions={evil: evil},
        figures={evil: figure(evil)},
        notes=[evil],
        commands=[evil],
    )
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own, which sorts
    assert evil not in html and page.text.count(evil) >= 8


def test_report_needs_nothing_but_itself(tmp_path):
    write_run(tmp_path)
    html = make_report(tmp_path, collect([tmp_path]), figures={"training_curves": figure()})
    tags = Page(html).tags
    assert [attrs["src"][:22] for _, attrs in tags if "src" in attrs] == ["data:image/png;base64,"]
    assert not any("href" in attrs for _, attrs in tags) and "@import" not in html and "url(" not in html


def test_report_tells_how_it_was_made(tmp_path):
    write_run(tmp_path, "base", 0)
    write_run(tmp_path, "base", 4)
    html = make_report(
        tmp_path,
        collect([tmp_path]),
        stages=[{"name": "generator", "seconds": 184.2, "hash": "3f2a9c"}, {"name": "train"}],
        settings={"dream": {"space": {"epochs": 7}}, "out": tmp_path},
        versions={"torch": "2.15.0"},
        figures={"roc_curves": plots.roc_curves({"base": {"id": [1, 2], "near": [0, 1]}})},
        notes=["a small benchmark"],
        commands=["openood-dream quickstart --out x"],
    )
    text = Page(html).text
    for part in ("generator", "3 min 4 s", "3f2a9c", "space:\n    epochs: 7", "2.15.0", "seeds 0, 4"):
        assert part in text
    assert "a small benchmark" in text and "openood-dream quickstart --out x" in text and "upper left corner" in text


def test_report_shows_the_numbers_of_the_table(tmp_path):
    for seed, near in enumerate((93.74, 93.99, 94.24)):
        write_run(tmp_path, "dream", seed, rows=scores(near), outlier_data="imagined (knn)")
        write_run(tmp_path, "base", seed, rows=scores(near - 2))
    text = text_of(make_report(tmp_path, collect([tmp_path])))
    assert "found best by dream with ebo: AUROC 93.99 ± 0.25 over 3 seeds" in text
    assert "best without imagined outliers is base with ebo: 91.99 ± 0.25" in text


@pytest.mark.parametrize(("epochs", "words"), [(1, ", 1 epoch,"), (2, ", 2 epochs,")])
def test_report_counts_in_english(tmp_path, epochs, words):
    write_run(tmp_path, optimizer__num_epochs=epochs)
    assert words in text_of(make_report(tmp_path, collect([tmp_path])))


def test_counts_are_shown_in_full_and_shares_to_three_digits(tmp_path):
    write_run(tmp_path)
    judged = pd.DataFrame({"class": ["cat"], "images": [10000], "own class": [66.6667], "dropped": [pd.NA]})
    html = make_report(tmp_path, collect([tmp_path]), judged={"set": judged.astype({"dropped": "Int64"})})
    row = html.partition("<td>cat</td>")[2].partition("</tr>")[0]
    assert re.findall(r'<td class="number">(.*)</td>', row) == ["10000", "66.7", "–"]


def test_accuracy_on_shifted_sets_is_shown(tmp_path):
    folder = write_run(tmp_path)
    write_csv(folder / "csid.csv", [[name, "-", "-", "-", "-", "61.25"] for name in ("turned", "csid")])
    assert "61.25" in text_of(make_report(tmp_path, collect([tmp_path])))


def test_network_without_classes(tmp_path):
    write_run(tmp_path, "frl", rows=[[*row[:5], "nan"] for row in scores(80)])
    assert "frl" in text_of(make_report(tmp_path, collect([tmp_path])))


def test_failures_and_published_rows_are_shown(tmp_path):
    write_run(tmp_path, dataset__name="cifar10")
    failure = {"method": "oe", "postprocessor": "ebo", "seed": 1, "network": "resnet18_32x32", "text": "no <loss>"}
    runs = collect([tmp_path])
    rows = table(runs, failures=[failure | {"dataset": "cifar10", "outlier_data": "none"}], published=True)
    html = make_report(tmp_path, runs, table=rows)
    assert "no &lt;loss&gt;" in html and "OAL (published)" in text_of(html)


def test_report_that_fails_leaves_the_old_one(tmp_path):
    write_run(tmp_path)
    make_report(tmp_path, collect([tmp_path]), notes=["old"])
    write_run(tmp_path, "other", dataset__name="cifar10")
    with pytest.raises(InputError):
        make_report(tmp_path, collect([tmp_path]))
    assert "old" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_report_goes_where_it_is_told(tmp_path):
    write_run(tmp_path)
    target: Path = tmp_path / "new" / "board.html"
    make_report(target, collect([tmp_path]))
    assert target.is_file()
