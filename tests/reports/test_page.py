"""The HTML report: one file that shows names as text, and the numbers of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from finished_runs import Page, make_report, scores, write_csv, write_run

from openood_dream.errors import InputError
from openood_dream.reports import plots
from openood_dream.reports.gains import Cost
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
    assert [attrs["srcset"][:22] for _, attrs in tags if "srcset" in attrs] == [
        "data:image/png;base64,"
    ]  # for dark pages
    assert all(attrs["href"].startswith("#") for _, attrs in tags if "href" in attrs)
    assert "@import" not in html and "url(" not in html


def test_contents_lead_to_sections_that_are_there(tmp_path):
    write_run(tmp_path)
    judged = pd.DataFrame({"class": ["cat"], "images": [4]})
    figures = {"training_curves": figure(), "mistakes: base": figure(), "mistakes: oe": figure()}
    html = make_report(tmp_path, collect([tmp_path]), figures=figures, judged={"set": judged})
    tags = Page(html).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    links = [attrs["href"][1:] for tag, attrs in tags if tag == "a"]
    assert links == ids and len(set(ids)) == len(ids) == 7  # two figures of mistakes have one heading


def test_a_caption_stands_once_above_figures_of_one_kind(tmp_path):
    write_run(tmp_path)
    html = make_report(tmp_path, collect([tmp_path]), figures={"mistakes: base": figure(), "mistakes: oe": figure()})
    assert html.count("that the method is most sure to know") == 1 and html.count("<figure>") == 2


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
    assert "93.99 ± 0.25" in text and "91.99 ± 0.25" in text


def board(root: Path, **near_by_method: tuple[str, list[float]]) -> str:
    """The text of a report of methods with their outlier data and near-OOD AUROCs, one for each seed."""
    for method, (outlier_data, values) in near_by_method.items():
        for seed, near in enumerate(values):
            folder = write_run(root, method, seed, rows=scores(near), outlier_data=outlier_data)
            write_csv(folder / "csid.csv", [["csid", "-", "-", "-", "-", f"{near - 30}"]])
    costs = {"base": Cost(0, 60), "dream": Cost(150, 90), "oe": Cost(0, 75)}
    return text_of(make_report(root, collect([root]), costs=costs))


BASE, DREAM, OE = ("none", [90, 91, 92]), ("imagined (knn)", [92.0, 93.5, 94.0]), ("train_aux", [80, 95, 92])


def test_first_lines_answer_the_question(tmp_path):
    text = board(tmp_path, base=BASE, dream=DREAM, oe=OE)
    first = text[text.index("Do imagined outliers help?") : text.index("Contents")]
    # differences 2, 2.5, 2: their mean 2.17, t(2) 4.30 times 0.289 / sqrt(3) 0.72
    assert "Near-OOD AUROC (unknown images that resemble the known classes) +2.17 points (+1.45 to +2.88)" in first
    assert "csID Accuracy (the same of those that look different) +2.17 points" in first
    assert "It took 2.5 min to imagine, once; 1.5 min to train a seed." in first
    assert first.index("imagined from ID images") < first.index("real auxiliary images (train_aux)")
    assert "Near-OOD AUROC \u22122 points (\u221220 to +16: may be chance)" in first
    assert "95 % t-interval over seeds" in first and "(n = 3)" in first


def test_one_seed_says_nothing_of_chance(tmp_path):
    text = board(tmp_path, base=("none", [90]), dream=("imagined (knn)", [92]))
    assert "+2.0 points" in text and "One seed says nothing of chance." in text and "(n = 1)" in text


def test_without_imagined_outliers_first_lines_name_the_best(tmp_path):
    text = board(tmp_path, base=BASE, vos=("none", [93, 94, 95]))
    assert "found best by vos with ebo: AUROC 94.00 ± 1.00 over 3 seeds" in text and "Do imagined" not in text


def test_intervals_in_the_leaderboard_are_those_of_the_seeds(tmp_path):
    text = board(tmp_path, base=BASE)
    assert "91.00 ± 1.0088.5 to 93.5" in text  # t(2) 4.30 / sqrt(3)
    assert "95.00 ± 0.00 " in text and "95.00 to 95.00" not in text


@pytest.mark.parametrize(("epochs", "words"), [(1, ", 1 epoch,"), (2, ", 2 epochs,")])
def test_report_counts_in_english(tmp_path, epochs, words):
    write_run(tmp_path, optimizer__num_epochs=epochs)
    assert words in text_of(make_report(tmp_path, collect([tmp_path])))


def test_counts_are_shown_in_full_and_shares_to_three_digits(tmp_path):
    write_run(tmp_path)
    judged = pd.DataFrame(
        {"class": ["cat", "ID test"], "kept": [7000, pd.NA], "images": [10000, 9], "own class": [66.6667] * 2}
    )
    html = make_report(tmp_path, collect([tmp_path]), judged={"set": judged.astype({"kept": "Int64"})})
    found = [html.partition(f"<td>{name}</td>")[2].partition("</tr>")[0] for name in judged["class"]]
    numbers = [re.findall(r'<td class="number">(.*)</td>', row) for row in found]
    assert numbers == [["7000", "10000", "66.7"], ["–", "9", "66.7"]]
    assert "Of 10000 imagined images 7000 were kept to train with." in text_of(html)


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
