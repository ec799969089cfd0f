"""The report of a finished benchmark: tables and figures gathered from its runs and artifacts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from openood_dream._version import __version__
from openood_dream.datasets.imglist import read_imglist
from openood_dream.datasets.reading import read_image
from openood_dream.device import pick_device
from openood_dream.dream.chain import Dream
from openood_dream.dream.findings import quality_table
from openood_dream.dream.plain import load_plain
from openood_dream.experiment import Experiment
from openood_dream.networks.features import classify
from openood_dream.networks.settings import GenerativeNetwork
from openood_dream.reports import gallery, page, plots
from openood_dream.reports.benchmarked import (
    Run,
    costs,
    first_runs,
    learned_from_images,
    shown_postprocessor,
    training_stages,
)
from openood_dream.reports.columns import groups_of, title
from openood_dream.reports.generative import sampled
from openood_dream.reports.probe import probed
from openood_dream.reports.render import render
from openood_dream.reports.runs import collect, read_scores
from openood_dream.reports.table import table
from openood_dream.reports.variants import VARIANT, variants
from openood_dream.store.artifacts import Artifact
from openood_dream.store.files import write_json, write_text

PACKAGES = ("torch", "diffusers", "transformers", "timm", "pytorch-ood", "scikit-learn", "numpy")
IMAGINED_FILE = "imagined.json"  # where the images lie that methods learned from
COLUMNS = 12  # thumbnails in a row
THUMBNAIL = 64


def write(
    out: Path,
    runs: Sequence[Path],
    experiments: Sequence[Experiment],
    seconds: float,
    commands: Sequence[str],
    failures: Sequence[Mapping[str, Any]],
    remarks: Sequence[str] = (),
) -> Path:
    """Writes leaderboard.{md,csv,json}, imagined.json and report.html of a benchmark.

    Args:
        out: the folder that they are written into.
        runs: folders of finished and scored trainings.
        experiments: the experiment of each run.
        seconds: how long the benchmark took this time.
        commands: how to run it again.
        failures: jobs that failed, as table.table takes them.
        remarks: lines about what is not in the report.

    Returns:
        The path of report.html.
    """
    finished = [Run(folder, experiment) for folder, experiment in zip(runs, experiments, strict=True)]
    # a run's folder may hold scores of postprocessors that are not asked for any more
    frame = collect([run.folder / name for run in finished for name in run.experiment.benchmark.postprocessors])
    # the methods that a benchmark names may differ in network and epochs
    rows = table(frame, allow_mixed=True, failures=failures)
    for fmt in ("md", "csv", "json"):
        write_text(out / f"leaderboard.{fmt}", render(rows, fmt))
    failed = {(one["method"], one["seed"]): one for one in failures}  # each stands there once for every postprocessor
    notes = [*remarks] + [f"Failed: {method}, seed {seed}: {one['text']}" for (method, seed), one in failed.items()]
    first = first_runs(finished)
    figures, stages, judged = {"comparison": comparison(frame, first)}, training_stages(finished), {}
    kept = dict[str, dict[str, Any]]()
    if dreams := imagined(finished):
        drawn, artifacts, found = dream_figures(dreams, classifier(finished))
        figures, stages, notes = figures | drawn, artifacts + stages, notes + found
        judged = {name: quality_table(experiment.imagination.quality) for name, experiment in dreams.items()}
        kept = {name: kept_images(experiment) for name, experiment in dreams.items()}
    write_json(out / IMAGINED_FILE, kept)
    told, probe_notes = probed(first)
    drawn, found = sampled(first)
    return page.report(
        out,
        runs=frame,
        table=rows,
        stages=[*stages, {"name": "everything, this time", "seconds": round(seconds, 1), "hash": ""}],
        settings=finished[-1].experiment.to_dict(),
        versions=versions(finished[0].experiment, finished),
        figures=figures | told | score_figures(first) | drawn,
        notes=[*notes, *probe_notes, *found, *doubts(finished, dreams)],
        judged=judged,
        costs=costs(finished),
        commands=commands,
    )


def kept_images(experiment: Experiment) -> dict[str, Any]:
    """Where the imagined images lie that a method learned from.

    Args:
        experiment: the method's.

    Returns:
        How many were drawn (`images`) and kept, the folder of all, and the list of the kept ones.
    """
    dream = experiment.imagination
    total, chosen = dream.images.manifest["images"], dream.training_images()
    kept = len(read_imglist(chosen.imglist))
    return {"images": total, "kept": kept, "folder": str(dream.images.path), "list": str(chosen.imglist)}


def doubts(runs: Sequence[Run], dreams: Mapping[str, Experiment]) -> list[str]:
    """What is doubtful about some trainings and the imaginations behind them, each said once.

    Args:
        runs: finished trainings.
        dreams: experiments that imagined, by their method.
    """
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for text in run.record.get("warnings") or []:
            found.setdefault(text, {})[f"{run.experiment.method}, seed {run.experiment.run.seed}"] = None
    for method, experiment in dreams.items():
        dream = experiment.imagination
        for artifact in (
            dream.space,
            dream.generator,
            dream.inversion,
            dream.plain_samples,
            dream.outliers,
            dream.quality,
        ):
            for text in artifact.warnings if artifact else []:
                found.setdefault(text, {})[method] = None
    return [f"Doubtful ({'; '.join(whose)}): {text}" for text, whose in found.items()]


def versions(experiment: Experiment, runs: Sequence[Run] = ()) -> dict[str, str]:
    """What the figures were computed with.

    Args:
        experiment: says on which device.
        runs: trainings, whose number formats are named.
    """
    device = pick_device(experiment.run.device)
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "openood-dream": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{device} ({where})",
        "training precision": " and ".join(dict.fromkeys(run.record.get("precision") or "unknown" for run in runs)),
    }


# ------------------------------------------------------------------------------------------------------------- scores


def comparison(frame: pd.DataFrame, first: Mapping[str, Run]) -> bytes:
    """The AUROC of each group and the ID accuracy of every method, or against the key that the benchmark varies, as PNG.

    Runs of a method that are no seeds of one run have places of their own.

    Args:
        frame: runs.collect's rows.
        first: a run of each method.
    """
    experiments = {method: run.experiment for method, run in first.items()}
    vary = next(iter(experiments.values())).benchmark.vary
    postprocessors = {method: shown_postprocessor(experiment) for method, experiment in experiments.items()}
    kept = frame[frame["postprocessor"] == frame["method"].map(postprocessors)]
    groups = kept.assign(**{VARIANT: variants(kept)[0]}).groupby(["method", VARIANT])
    rows = [row for method in first for row in groups.indices if row[0] == method]
    names = {f"{group}_auroc": f"{title(group)} AUROC" for group in groups_of(kept.columns)}
    series = {
        words: [(groups[key].mean()[row], groups[key].std().fillna(0)[row]) for row in rows]
        for key, words in (names | {"id_acc": "ID accuracy"}).items()
    }
    labels = [f"{method}: {plots.shorten(variant, 30)}" if variant else method for method, variant in rows]
    places = labels if vary is None else [experiments[method].at(vary) for method, _ in rows]
    score = " and ".join(dict.fromkeys(postprocessors.values()))
    return plots.comparison(places, series, vary or "", f"Mean and standard deviation over seeds, {score}")


def score_figures(first: Mapping[str, Run]) -> dict[str, bytes]:
    """Histograms of each detector, ROC curves, training curves and mistakes of the first seed of each method, as PNG."""
    curves: dict[str, dict[str, np.ndarray]] = {}
    confidences: dict[str, dict[str, plots.Scores]] = {}
    for method, run in first.items():
        experiment, postprocessor = run.experiment, shown_postprocessor(run.experiment)
        id_scores = read_scores(run.scores / f"{experiment.dataset.name}.npz")[1]
        found: dict[str, dict[str, np.ndarray]] = {}
        for group, name in experiment.data.ood_sets():
            found.setdefault(title(group), {})[name] = read_scores(run.scores / f"{name}.npz")[1]
        confidences.setdefault(postprocessor, {})[method] = plots.Scores(id_scores, found)
        pooled = {group: np.concatenate([*sets.values()]) for group, sets in found.items()}
        curves[f"{method}, {postprocessor}"] = {"id": id_scores} | pooled
    histograms = {
        f"score_histograms: {name}": plots.score_histograms(of, f"Confidence by {name}, first seed")
        for name, of in confidences.items()
    }
    training = plots.training_curves({method: run.record["epochs"] for method, run in first.items()})
    mistakes = {f"mistakes: {method}": mistake_grid(run) for method, run in first.items()}
    roc = plots.roc_curves(curves, "ROC curves, first seed")
    return {"roc_curves": roc} | histograms | {"training_curves": training} | mistakes


def mistake_grid(run: Run) -> bytes:
    """The OOD images with the largest confidence, of each group of sets, and the ID images with the smallest."""
    experiment = run.experiment
    named = _class_labels(experiment)
    surest: dict[str, list[tuple[float, Path, str]]] = {}
    for group, name in experiment.data.ood_sets():
        pred, conf, _ = read_scores(run.scores / f"{name}.npz")
        paths = _image_paths(experiment, "ood_dataset", group, name)
        rows = np.argsort(-conf, kind="stable")[:COLUMNS]
        surest.setdefault(group, []).extend((conf[row], paths[row], named[int(pred[row])]) for row in rows)
    grid: list[plots.Row] = []
    for group, every in surest.items():
        found = sorted(every, key=lambda one: -one[0])[:COLUMNS]
        grid.append(
            plots.Row(f"surest of {title(group)}", [thumbnail(at) for _, at, _ in found], [seen for *_, seen in found])
        )
    pred, conf, label = read_scores(run.scores / f"{experiment.dataset.name}.npz")
    paths, rows = _image_paths(experiment, "dataset", "test"), np.argsort(conf, kind="stable")[:COLUMNS]
    captions = [f"{named[int(label[row])]}: {named[int(pred[row])]}" for row in rows]
    grid.append(plots.Row("most doubted of ID", [thumbnail(paths[row]) for row in rows], captions))
    return plots.image_grid(grid, f"{experiment.method}: where {shown_postprocessor(experiment)} is most wrong")


def thumbnail(path: Path) -> np.ndarray:
    """An image, at most THUMBNAIL pixels a side, as uint8 (H, W, 3)."""
    small = read_image(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(small)


def _class_labels(experiment: Experiment) -> dict[int, str]:
    """What a label is called: its class name where the config has those, else its number."""
    known = experiment.has("dream")
    names = experiment.imagination.names if known else map(str, range(experiment.dataset.num_classes))
    return dict(enumerate(names)) | {-1: "?"}


def _image_paths(experiment: Experiment, *which: str) -> list[Path]:
    """The images of a set in the order of its list."""
    images = experiment.data.images(*which)
    return [Path(images.data_dir) / name for name, _ in images.rows]


# -------------------------------------------------------------------------------------------------- what was imagined


def imagined(runs: Sequence[Run]) -> dict[str, Experiment]:
    """The experiment of each method that learned from imagined images, one for each image set and what a filter left of it.

    All have the class names of the first.
    """
    found: dict[str, Experiment] = {}
    for run in runs:
        experiment, dreams = run.experiment, [other.dream for other in found.values()]
        if learned_from_images(run) and experiment.dream not in dreams:
            found.setdefault(experiment.method, experiment)
    names = {method: experiment.imagination.names for method, experiment in found.items()}
    return {method: found[method] for method, own in names.items() if own == next(iter(names.values()))}


def each_once(dreams: Mapping[str, Experiment], what: Callable[[Dream], Artifact]) -> dict[str, Experiment]:
    """The first experiment of each artifact, by its method.

    Args:
        dreams: experiments by their method.
        what: the artifact of an imagination that tells them apart.
    """
    firsts: dict[str, str] = {}
    for method, experiment in dreams.items():
        firsts.setdefault(what(experiment.imagination).hash, method)
    return {method: dreams[method] for method in firsts.values()}


def classifier(runs: Sequence[Run]) -> Run | None:
    """The first run of a network that knows classes."""
    return next((run for run in runs if not isinstance(run.experiment.network, GenerativeNetwork)), None)


def dream_figures(
    dreams: Mapping[str, Experiment], judge: Run | None
) -> tuple[dict[str, bytes], list[dict[str, Any]], list[str]]:
    """What was imagined, in figures and words.

    Args:
        dreams: experiments of the same classes, by their method.
        judge: a trained classifier that says how well plain prompts of the first are drawn, or None.

    Returns:
        Figures as PNG, the stages of the first (name, seconds, hash), and sentences.
    """
    experiment = next(iter(dreams.values()))
    dream = experiment.imagination
    made = dream.plain_samples
    shown, plain = made.manifest["inputs"]["labels"], load_plain(made)
    stages = [dream.anchors, dream.space, dream.generator, dream.inversion, dream.outliers, dream.images, made]
    notes = [] if judge is None else [_plain_agreement(judge, shown, plain)]
    accuracy = dream.space.manifest["val_accuracy"]
    notes.append(f"Space: the cosine classifier has {accuracy:.1f} % validation accuracy.")
    prompts: list[plots.Row] = [
        plots.Row(dream.names[i], list(of[:COLUMNS].permute(0, 2, 3, 1).numpy())) for i, of in zip(shown, plain)
    ]
    mapped = {name: one for name, one in dreams.items() if one.imagination.embedded.hash == dream.embedded.hash}
    figures = {
        "outliers": gallery.grid(each_once(dreams, lambda one: one.images)),
        "image_lines": gallery.line(experiment),
        "plain_prompts": plots.image_grid(prompts, "Plain prompts: what the generator draws of each class name"),
        "embedding_map": gallery.embeddings(each_once(mapped, lambda one: one.outliers)),
    }
    return figures, [{"name": a.stage, "seconds": a.manifest["seconds"], "hash": a.hash} for a in stages if a], notes


def _plain_agreement(judge: Run, labels: Sequence[int], plain: torch.Tensor) -> str:
    """How often a run's classifier sees the class of the prompt in images (L, n, 3, S, S) of `labels` (L)."""
    experiment, truth = judge.experiment, torch.tensor(labels).repeat_interleave(plain.shape[1])
    device = pick_device(experiment.run.device)
    logits = classify(judge.network(), plain.flatten(0, 1), experiment.data.transform, device)
    agrees = (logits.argmax(1) == truth).float().mean().item()
    return (
        f"Generator: the classifier {experiment.method}, seed {experiment.run.seed}, sees the class of the prompt in "
        f"{100 * agrees:.1f} % of {len(truth)} plain samples."
    )
