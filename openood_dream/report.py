"""The report of a finished benchmark: tables and figures gathered from its runs and artifacts."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from openood_dream import data, leaderboard, plots, store
from openood_dream.config import GENERATIVE_SETTINGS, Config, settings
from openood_dream.networks import get_network, load_weights, pick_device, pick_dtype

PACKAGES = ("openood-dream", "torch", "diffusers", "transformers", "timm", "pytorch-ood", "scikit-learn", "numpy")
PLAIN_PER_CLASS = 50
COLUMNS = 12  # thumbnails in a row
THUMBNAIL = 64


def write(
    out: Path,
    runs: list[Path],
    configs: list[Config],
    seconds: float,
    commands: list[str],
    failures: list[dict[str, Any]],
) -> Path:
    """Writes leaderboard.{md,csv,json} and report.html for runs and their configs into `out`; returns the report's path.

    `failures` are those that leaderboard.table notes in its rows.
    """
    scored = zip(runs, configs)  # a run's folder may hold scores of postprocessors that are not asked for any more
    frame = leaderboard.collect(
        [run / name for run, config in scored for name in settings(config, "benchmark").postprocessors]
    )
    # the methods that a benchmark names may differ in network and epochs
    table = leaderboard.table(frame, allow_mixed=True, failures=failures)
    for fmt in ("md", "csv", "json"):
        store.write_text(out / f"leaderboard.{fmt}", leaderboard.render(table, fmt))
    stages, figures, notes, judged = training_stages(runs, configs), {}, [], {}
    failed = {(one["method"], one["seed"]): one for one in failures}  # each stands there once for every postprocessor
    notes += [f"Failed: {method}, seed {seed}: {one['text']}" for (method, seed), one in failed.items()]
    dreams = imagined(configs)
    if dreams:
        from openood_dream import quality

        stages = dream_figures(dreams, classifier(runs, configs), figures, notes) + stages
        judged = {name: quality.table(quality.run(config)) for name, config in dreams.items()}
    first = first_runs(runs, configs)
    figures = {"comparison": comparison(frame, first)} | figures | score_figures(first) | sampled(first, notes)
    stages.append({"name": "everything, this time", "seconds": round(seconds, 1), "hash": ""})
    return leaderboard.report(
        out,
        runs=frame,
        table=table,
        stages=stages,
        settings=configs[-1].to_dict(),
        versions=versions(configs[0]),
        figures=figures,
        notes=notes,
        judged=judged,
        commands=commands,
    )


def versions(config: Config) -> dict[str, str]:
    """What the figures were computed with."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = pick_device(config.device)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    precision = str(pick_dtype(config.precision, device)).removeprefix("torch.")
    return {
        "python": platform.python_version(),
        **found,
        "device": f"{device} ({where})",
        "training precision": precision,
    }


def training_stages(runs: list[Path], configs: list[Config]) -> list[dict[str, Any]]:
    """One row per method: the seconds of all its seeds together."""
    spent: dict[str, float] = {}
    for run, config in zip(runs, configs):
        spent[config.method] = spent.get(config.method, 0) + store.read_record(run / "train.json")["seconds"]
    return [{"name": f"train: {method}", "seconds": round(total, 1), "hash": ""} for method, total in spent.items()]


def first_runs(runs: list[Path], configs: list[Config]) -> dict[str, tuple[Path, Config]]:
    """The run of each method with its first seed, and its config."""
    first: dict[str, tuple[Path, Config]] = {}
    for run, config in zip(runs, configs):
        first.setdefault(config.method, (run, config))
    return first


def comparison(frame: pd.DataFrame, first: dict[str, tuple[Path, Config]]) -> bytes:
    """Near- and far-OOD AUROC and ID accuracy of every method, or against the key that the benchmark varies."""
    configs = [config for _, config in first.values()]
    plan = settings(configs[0], "benchmark")
    kept = frame[[row.postprocessor == shown(first[row.method][1]) for row in frame.itertuples()]]
    groups = kept.groupby("method")
    names = {"near_auroc": "near-OOD AUROC", "far_auroc": "far-OOD AUROC", "id_acc": "ID accuracy"}
    series = {
        title: [(groups[key].mean()[method], groups[key].std().fillna(0)[method]) for method in first]
        for key, title in names.items()
    }
    places = list(first) if plan.vary is None else [config.at(plan.vary) for config in configs]
    score = " and ".join(dict.fromkeys(map(shown, configs)))
    return plots.comparison(places, series, plan.vary or "", f"Mean and standard deviation over seeds, {score}")


def shown(config: Config) -> str:
    """The postprocessor that figures show for a method: `ebo` where it has that, else its first."""
    names = settings(config, "benchmark").postprocessors
    return "ebo" if "ebo" in names else names[0]


def score_figures(first: dict[str, tuple[Path, Config]]) -> dict[str, bytes]:
    """Histograms, ROC curves and training curves of the first seed of each method."""
    curves, figures = {}, {}
    for method, (run, config) in first.items():
        postprocessor = shown(config)
        folder = run / postprocessor / "scores"
        inside = leaderboard.read_scores(folder / f"{config.dataset.name}.npz")[1]
        near, far = (
            {name: leaderboard.read_scores(folder / f"{name}.npz")[1] for name in config.ood_dataset[group].datasets}
            for group in ("nearood", "farood")
        )
        figures[f"score_histograms: {method}"] = plots.score_histograms(
            inside, near, far, f"{method}: {postprocessor} confidence"
        )
        curves[f"{method}, {postprocessor}"] = {
            "id": inside,
            "near": np.concatenate([*near.values()]),
            "far": np.concatenate([*far.values()]),
        }
    histories = {method: store.read_record(run / "train.json")["epochs"] for method, (run, _) in first.items()}
    roc = {"roc_curves": plots.roc_curves(curves, "ROC curves, first seed")}
    mistakes = {f"mistakes: {method}": mistake_grid(run, config) for method, (run, config) in first.items()}
    return roc | figures | {"training_curves": plots.training_curves(histories)} | mistakes


def sampled(first: dict[str, tuple[Path, Config]], notes: list[str]) -> dict[str, bytes]:
    """Images drawn from each generative network, its high-frequency channel below; its bits per dimension join the notes."""
    rows = []
    for method, (run, config) in first.items():
        if config.network.name not in GENERATIVE_SETTINGS:
            continue
        colours = config.network.channels
        images = store.read_tensors(draw(run, config).path / "samples.safetensors")["images"]
        for label, part in ((method, images[:, :colours]), (f"{method}: high frequencies", images[:, colours:])):
            if part.shape[1]:
                rows.append((label, list(part.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()), None))
        best = max(row["val_acc"] for row in store.read_record(run / "train.json")["epochs"])
        bits = -math.log2(best / 100)
        notes.append(
            f"{method}, seed {config.seed}: {bits:.2f} bits per dimension of the validation images, "
            f"{bits * images.shape[1]:.1f} per pixel of {images.shape[1]} channels."
        )
    return {"samples": plots.image_grid(rows, "Drawn from the generative networks")} if rows else {}


def draw(run: Path, config: Config) -> store.Artifact:
    """`samples.safetensors`: `images` (COLUMNS, channels, S, S) uint8 drawn from a run's generative network."""
    weights = run / "best.ckpt"

    def make(folder: Path) -> None:
        net = get_network(config)
        load_weights(net, weights)
        device = pick_device(config.device)
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(0)
            images = net.to(device).eval().model.sample(COLUMNS)
        store.write_tensors(folder / "samples.safetensors", images=images.cpu())

    return store.build(run, "samples", {"weights": store.sha256(weights), "count": COLUMNS}, make)


def mistake_grid(run: Path, config: Config) -> bytes:
    """The OOD images with the largest confidence, of near and of far sets, and the ID images with the smallest."""
    folder, named = run / shown(config) / "scores", labels(config)
    grid = []
    for group in ("near", "far"):
        found = []
        for name in config.ood_dataset[f"{group}ood"].datasets:
            pred, conf, _ = leaderboard.read_scores(folder / f"{name}.npz")
            paths = image_paths(config, ("ood_dataset", f"{group}ood", name))
            rows = np.argsort(-conf, kind="stable")[:COLUMNS]
            found += [(conf[row], paths[row], named[int(pred[row])]) for row in rows]
        found = sorted(found, key=lambda one: -one[0])[:COLUMNS]
        grid.append((f"surest of {group}-OOD", [thumbnail(path) for _, path, _ in found], [seen for *_, seen in found]))
    pred, conf, label = leaderboard.read_scores(folder / f"{config.dataset.name}.npz")
    paths, rows = image_paths(config, ("dataset", "test")), np.argsort(conf, kind="stable")[:COLUMNS]
    captions = [f"{named[int(label[row])]}: {named[int(pred[row])]}" for row in rows]
    grid.append(("most doubted of ID", [thumbnail(paths[row]) for row in rows], captions))
    return plots.image_grid(grid, f"{config.method}: where {shown(config)} is most wrong")


def labels(config: Config) -> dict[int, str]:
    """What a label is called: its class name where the config has those, else its number."""
    names = data.class_names(config) if config.dream else map(str, range(config.dataset.num_classes))
    return dict(enumerate(names)) | {-1: "?"}


def image_paths(config: Config, which: tuple[str, ...]) -> list[Path]:
    """The images of a set in the order of its list."""
    section = data.section_of(config, which)
    return [Path(section.data_dir) / name for name, _ in store.read_imglist(section.imglist_pth)]


def thumbnail(path: Path) -> np.ndarray:
    """An image, at most THUMBNAIL pixels a side."""
    small = data.read_image(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(small)


# ---------------------------------------------------------------------------------------------------- what was dreamt


def imagined(configs: list[Config]) -> dict[str, Config]:
    """The config of each method that learns from imagined images, one for each image set; all share the first's space."""
    from openood_dream import space

    found: dict[str, Config] = {}
    for config in configs:
        if config.outlier_data and config.dream not in [other.dream for other in found.values()]:
            found.setdefault(config.method, config)
    spaces = {method: space.run(config).hash for method, config in found.items()}
    return {method: config for method, config in found.items() if spaces[method] == next(iter(spaces.values()))}


def classifier(runs: list[Path], configs: list[Config]) -> tuple[Path, Config] | None:
    """The first run of a network that knows classes."""
    return next((pair for pair in zip(runs, configs) if pair[1].network.name not in GENERATIVE_SETTINGS), None)


def dream_figures(
    dreams: dict[str, Config], judge: tuple[Path, Config] | None, figures: dict[str, bytes], notes: list[str]
) -> list[dict[str, Any]]:
    """Adds the figures of all `dreams`, and what the run `judge` sees in plain prompts of the first.

    Returns the stages of the first.
    """
    from openood_dream import anchors, gallery, generator, imagine, outliers, space

    config = next(iter(dreams.values()))
    names = data.class_names(config)
    artifacts = [anchors.run(config), space.run(config)]
    source = generator.run(config)
    made = store.complete(Path(source.path))
    if made is not None:
        artifacts.append(store.Artifact(Path(source.path), made, reused=True))
    shown = gallery.few(range(len(names)), ())
    artifacts += [outliers.run(config), imagine.run(config), imagine.plain(config, PLAIN_PER_CLASS, shown)]
    plain = store.read_tensors(artifacts[-1].path / "plain.safetensors")["images"]
    if judge is not None:
        run, run_config = judge
        net = get_network(run_config)
        load_weights(net, run / "best.ckpt")
        truth = torch.tensor(shown).repeat_interleave(plain.shape[1])
        agrees = (classify(net, plain.flatten(0, 1), run_config).argmax(1) == truth).float().mean().item()
        notes.append(
            f"Generator: the classifier {run_config.method}, seed {run_config.seed}, sees the class of the prompt in "
            f"{100 * agrees:.1f} % of {len(truth)} plain samples."
        )
    accuracy = artifacts[1].manifest["val_accuracy"]
    notes.append(f"Space: the cosine classifier has {accuracy:.1f} % validation accuracy.")
    figures["outliers"] = gallery.grid(dreams)
    figures["image_lines"] = gallery.line(config)
    figures["plain_prompts"] = plots.image_grid(
        [(names[i], list(of[:COLUMNS].permute(0, 2, 3, 1).numpy()), None) for i, of in zip(shown, plain)],
        "Plain prompts: what the generator draws of each class name",
    )
    figures["embedding_map"] = gallery.embeddings(dreams)
    return [{"name": a.stage, "seconds": a.manifest["seconds"], "hash": a.hash} for a in artifacts]


@torch.inference_mode()
def classify(net: torch.nn.Module, images: torch.Tensor, config: Config) -> torch.Tensor:
    """Logits (N, C) of uint8 images (N, 3, S, S), resized and normalised as the config says."""
    device, dataset = pick_device(config.device), config.dataset
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in data.NORMALIZATION.get(dataset.normalization_type, ((0.5,) * 3,) * 2)
    )
    net.to(device).eval()
    logits = []
    for part in images.split(256):
        x = part.float() / 255
        if x.shape[-1] != dataset.image_size:
            x = torch.nn.functional.interpolate(
                x, (dataset.image_size,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
        logits.append(net(((x - mean) / std).to(device)).float().cpu())
    return torch.cat(logits)
