"""Tables and pages of benchmarks with other groups of OOD sets than near and far."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from finished_runs import scores, write_csv, write_run, write_scores

from openood_dream.errors import InputError
from openood_dream.reports.columns import header, metrics_of, primary
from openood_dream.reports.page import report
from openood_dream.reports.render import render
from openood_dream.reports.runs import collect
from openood_dream.reports.submission import submit
from openood_dream.reports.table import table

GROUPS = {
    "far": ({"farood": ["flower", "noise"]}, ["far"]),
    "own": ({"scans": ["six"], "nearood": ["flower"]}, ["near", "scans"]),
}


def boards(root, sets: dict[str, list[str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of base and a better method with two seeds each, on these groups; and their table."""
    for method, shift in {"base": 0.5, "better": 1.5}.items():
        for seed in (0, 1):
            folder = write_run(root, method, seed, rows=[])
            write_scores(folder, shift, seed)
            config = json.loads(json.dumps({"ood_dataset": {name: {"datasets": of} for name, of in sets.items()}}))
            with open(folder / "config.yml", "a", encoding="utf-8") as file:
                file.write(json.dumps(config)[1:-1] + "\n")  # the last value of a key counts
            named = [[*row[:3], "80", "70", "97"] for row in scores(80 + 10 * shift)]
            rows = [[name, *named[0][1:]] for group, of in sets.items() for name in (*of, group)]
            write_csv(folder / "ood.csv", rows)
    runs = collect([root])
    return runs, table(runs)


@pytest.mark.parametrize(("sets", "groups"), GROUPS.values(), ids=GROUPS)
def test_every_group_has_its_columns(tmp_path, sets, groups):
    runs, found = boards(tmp_path, sets)
    assert metrics_of(found) == [*(f"{g}_auroc" for g in groups), *(f"{g}_fpr95" for g in groups), "id_acc"]
    assert primary(found) == f"{groups[0]}_auroc" and found.method.tolist() == ["better", "base"]
    assert found.p_base[0] < 0.05 and found[f"{groups[-1]}_auroc_low"].notna().all()
    for fmt in ("md", "tex", "terminal", "csv", "json"):
        assert "95.00" in render(found, fmt) or "95.0" in render(found, fmt)
    html = report(tmp_path / "page", runs=runs, table=found).read_text(encoding="utf-8")
    issue = submit(runs, found, tmp_path / "entry").read_text(encoding="utf-8")
    for group in groups:
        assert header(f"{group}_auroc") in html and f"**{header(f'{group}_auroc')}**: 95.00" in issue


def test_a_row_of_a_group_that_the_config_names_must_be_there(tmp_path):
    folder = write_run(tmp_path, ood_dataset__scans={"datasets": ["six"]})
    with pytest.raises(InputError, match=f"{folder / 'ood.csv'}: row scans"):
        collect([tmp_path])


def test_headers():
    words = [header(key) for key in ("near_auroc", "far_fs_auroc", "scans_fpr95", "scans_fs_auroc", "csid_acc")]
    assert words == ["Near-OOD AUROC", "Far-FSOOD AUROC", "scans FPR@95", "scans FSOOD AUROC", "csID Accuracy"]
