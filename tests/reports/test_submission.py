"""An entry of OpenOOD's leaderboard."""

from __future__ import annotations

from finished_runs import scores, write_run

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


def test_published_rows_are_left_out(tmp_path):
    write_run(tmp_path / "in", dataset__name="cifar10")
    runs = collect([tmp_path / "in"])
    issue = submit(runs, table(runs, published=True), tmp_path / "out").read_text()
    assert issue.count("**Training**") == 1
