"""The report says how well image statistics alone tell auxiliary images from ID images."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from openood_dream.datasets.imglist import read_imglist
from openood_dream.datasets.reading import read_image
from openood_dream.evaluators.probe import image_statistics, probe
from openood_dream.reports import probe as of_report
from openood_dream.reports.benchmarked import Run


def pixels(rows: list[str], folder) -> np.ndarray:
    """Images that have the size of the data set already."""
    return np.stack([np.asarray(read_image(folder / name)).transpose(2, 0, 1) for name in rows])


@pytest.fixture(scope="module")
def first(benchmarked, tiny) -> dict[str, Run]:
    return {
        name: Run(benchmarked.root / "runs" / name / "s0", tiny.method(name, *benchmarked.overrides))
        for name in ("base", "oe", "dream_ood")
    }


def test_the_report_has_the_number_of_each_set_that_a_method_learned_from(first, benchmarked, dream):
    data = first["base"].experiment.data
    train = data.images("dataset", "train")
    known = image_statistics(train.pixels(torch.arange(len(train))).numpy())
    folder = dream.images.path
    drawn = pixels([name for name, _ in read_imglist(folder / "imglist.txt")], folder)
    auroc = probe(known, image_statistics(drawn))
    page = benchmarked.report.read_text(encoding="utf-8")
    found = re.search(r"Probe: AUROC .*?: oe ([\d.]+), dream_ood ([\d.]+); near 50 is wanted", page)
    assert found is not None and found[2] == f"{auroc:.1f}"
    assert float(found[1]) > 80 and "Over 80 (here oe" in page  # patches of a photo are no digits
    assert page.count('alt="probe"') == 1


def test_images_that_methods_share_are_judged_once(first):
    sets = of_report.auxiliary_sets(first | {"again": first["dream_ood"], "oe again": first["oe"]})
    assert list(sets) == ["oe", "dream_ood"]


def test_runs_without_such_images_have_no_figure(first):
    assert of_report.probed({"base": first["base"]}) == ({}, [])


def test_outliers_alone_are_judged_where_inliers_stand_beside_them(first):
    images = first["base"].experiment.data.images("dataset", "train").augmented()
    images.labels = torch.where(torch.arange(len(images)) < 9, -1, 0)
    found = of_report.statistics_of(images)
    expected = image_statistics(images.pixels(torch.arange(9)).numpy())
    assert np.array_equal(found.spectra, expected.spectra) and np.array_equal(found.colours, expected.colours)


def test_a_set_of_a_few_images_is_named(first, monkeypatch):
    run = first["oe"]
    monkeypatch.setattr(of_report, "MOST", 4)
    figures, (text,) = of_report.probed({"oe": run})
    assert figures == {} and text == "Probe: oe has 4 images, too few to be told from ID images."


def test_there_is_a_warning_over_80_alone():
    text = of_report.sentence({"a": 50.04, "b": 80.0})
    assert text.endswith("a 50.0, b 80.0; near 50 is wanted.")
    assert "Over 80 (here b)" in of_report.sentence({"a": 50.0, "b": 80.1})
