"""One forward pass per data set, kept on disk; many detectors; OpenOOD's metrics and files."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream import data, store
from openood_dream.config import Config, InputError, Section
from openood_dream.generative import scores  # noqa: F401  (registers its detectors)
from openood_dream.networks import autocast, pick_device
from openood_dream.postprocessors import Images, Pass, Postprocessor, find_postprocessor

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
TRANSFORM = (
    "pre_size",
    "image_size",
    "interpolation",
    "normalization_type",
)  # the keys that decide what a network sees
Set = tuple[str, ...]
TEST: Set = ("dataset", "test")
Verdict = tuple[np.ndarray, np.ndarray, np.ndarray]  # predictions, confidences and labels of a set, each (N,)


@torch.inference_mode()
def forward_pass(net: nn.Module, loader: DataLoader, device: torch.device) -> Pass:
    """Logits and features of every image of a loader, in eval mode and float32."""
    net.to(device).eval()
    logits, features, labels = [], [], []
    for batch in tqdm(loader, desc="evaluate", unit="batch", leave=False, delay=2):
        out, feature = net(batch["data"].to(device), return_feature=True)
        logits.append(out.float().cpu())
        features.append(feature.float().cpu())
        labels.append(batch["label"])
    return Pass(torch.cat(logits), torch.cat(features), torch.cat(labels))


@torch.inference_mode()
def accuracy(net: nn.Module, loader: DataLoader, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """The share of a loader's images whose label the network predicts."""
    net.eval()
    hits = 0
    for batch in loader:
        with autocast(device, dtype):
            guesses = net(batch["data"].to(device)).argmax(1).cpu()
        hits += (guesses == batch["label"]).sum().item()
    return hits / len(loader.dataset)


# ---------------------------------------------------------------------------------------------------------- metrics


def compute_metrics(conf: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """FPR@95, AUROC, AUPR_IN, AUPR_OUT and ACC as fractions, as OpenOOD v1.5 computes them.

    `conf` (N,) is larger for ID, `label` (N,) is -1 for OOD. FPR@95 is the share of ID samples taken for OOD at the
    first threshold that finds 95 % of the OOD samples; the AUPRs are areas by trapezoids. All depend on the order of
    the confidences alone, so infinite ones, where OpenOOD ends in an error, have their place in it.
    """
    ood = (label == -1).astype(int)
    conf = np.unique(conf, return_inverse=True)[1]
    fpr, tpr, _ = roc_curve(ood, -conf)
    precision_in, recall_in, _ = precision_recall_curve(1 - ood, conf)
    precision_out, recall_out, _ = precision_recall_curve(ood, -conf)
    known = ood == 0
    hits = np.mean(pred[known] == label[known])
    return np.array(
        [fpr[np.argmax(tpr >= 0.95)], auc(fpr, tpr), auc(recall_in, precision_in), auc(recall_out, precision_out), hits]
    )


# ---------------------------------------------------------------------------------------------------------- passes


class Passes:
    """The passes of one network over a config's data sets, each made once, when first asked for.

    A set is named by the keys of its section in the config: ("dataset", "test"), ("ood_dataset", "nearood", "tin"), ...
    With the `checkpoint` of the network's weights, passes are artifacts in `cache_dir`, named by the checkpoint's bytes,
    the image list and the transform, and memory-mapped: every detector and every later run finds them there.
    """

    def __init__(
        self, net: nn.Module, config: Config, checkpoint: Path | None = None, cache_dir: Path | None = None
    ) -> None:
        self.net, self.config, self.device, self.cache_dir = net, config, pick_device(config.device), cache_dir
        self.checkpoint = None if checkpoint is None else store.sha256(checkpoint)
        self._made: dict[Set, Pass] = {}
        self._loaders: dict[Set, DataLoader] = {}

    def of(self, which: Set, cls: type[Postprocessor]) -> Pass | Images:
        """What a detector gets of a set; InputError names detector and image where the network's output is no number."""
        if cls.runs_network:
            if which not in self._loaders:
                self._loaders[which] = self.loader(which)
            return Images(self.net, self._loaders[which], self.device)
        if which not in self._made:
            self._made[which] = self._stored(which) if self.checkpoint else self._forward(which)
        of = self._made[which]
        if of.broken is not None:
            image = self.image(which, of.broken)
            raise InputError(f"{cls.name}: the network's output for {image} is not a number; check the checkpoint")
        return of

    def loader(self, which: Set) -> DataLoader:
        """The images of a set in the order of its list, without augmentation."""
        room, *path = which
        return data.id_loader(self.config, *path) if room == "dataset" else data.ood_loader(self.config, *path)

    def head(self) -> nn.Linear | None:
        """The network's classifier, a copy on the CPU; None for a network that has none."""
        if not hasattr(self.net, "get_fc_layer"):
            return None
        return copy.deepcopy(self.net.get_fc_layer()).cpu().float().requires_grad_(False)

    def image(self, which: Set, row: int) -> str:
        """How messages name an image."""
        file, _ = store.read_imglist(data.section_of(self.config, which).imglist_pth)[row]
        return f"image {row} of {file_name(which, self.config)} ({file})"

    def _forward(self, which: Set) -> Pass:
        return forward_pass(self.net, self.loader(which), self.device)

    def _stored(self, which: Set) -> Pass:
        section = data.section_of(self.config, which)
        inputs = {
            "checkpoint": self.checkpoint,
            "network": {key: self.config.network.get(key) for key in ("name", "args")},
            "list": store.list_digest(section.imglist_pth, section.data_dir, f"{'.'.join(which)}.imglist_pth"),
            "transform": {key: self.config.dataset.get(key) for key in TRANSFORM},
        }
        return stored_pass(self.cache_dir, inputs, lambda: self._forward(which))


def stored_pass(cache_dir: Path, inputs: dict[str, Any], forward: Callable[[], Pass]) -> Pass:
    """The pass that `inputs` determine, memory-mapped from its artifact under `cache_dir`, made by `forward` if need be."""

    def make(folder: Path) -> None:
        of = forward()
        store.write_tensors(folder / "pass.safetensors", logits=of.logits, features=of.features, labels=of.labels)

    return Pass(**store.read_tensors(store.build(cache_dir, "pass", inputs, make).path / "pass.safetensors"))


def passes_dir(checkpoint: Path, out: Path) -> Path:
    """Where passes of a checkpoint are kept: beside it, for all that score it, or where that is not allowed, in `out`."""
    try:
        return store.writable(checkpoint.parent / "passes")
    except InputError:
        return out / "passes"


def file_name(which: Set, config: Config) -> str:
    """The name of a test set in ood.csv and scores/: that of the ID data set for its own, else the set's."""
    return config.dataset.name if which == TEST else which[-1]


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluate(passes: Passes, config: Config, out: Path) -> np.ndarray:
    """Scores a network with `postprocessor`, writes `config.yml`, `scores/<set>.npz` and, last, `ood.csv` under `out`.

    Where `ood_dataset` has a group csid (covariate-shifted images of ID classes), their accuracies go into `csid.csv`, and
    the metrics with them counted as ID, the full spectrum, into `fsood.csv`; with `evaluator.ood_scheme: fsood`, into
    `ood.csv` itself, as in OpenOOD.
    With `postprocessor.APS_mode` the hyperparameters are those of `postprocessor_sweep` with the best AUROC on the
    validation sets. Returns the near-OOD means (METRICS, as fractions). A network whose predictions are all -1 knows no
    classes, and its accuracy is NaN. Scores that are not numbers raise InputError, before anything is written.
    """
    cls, section = find_postprocessor(config), config.postprocessor
    if section.APS_mode and section.postprocessor_sweep:
        detector = best_on_validation(cls, config, passes)
    else:
        detector = fitted(cls, cls.arguments(config), passes)
    inside, groups = verdicts(detector, passes, TEST), {}
    for group, name in data.ood_sets(config):
        groups.setdefault(group, {})[name] = verdicts(detector, passes, ("ood_dataset", group, name))
    shifted = {name: verdicts(detector, passes, ("ood_dataset", "csid", name)) for name in data.csid_sets(config)}
    spectrum = tuple(np.concatenate(parts) for parts in zip(inside, *shifted.values()))
    full = (config.evaluator or {}).get("ood_scheme") == "fsood"
    rows = metric_rows(spectrum if full else inside, groups)
    with store.exclusive(out):
        (out / "ood.csv").unlink(missing_ok=True)  # of an earlier evaluation, whose scores are replaced from here on
        for folder in (out, out / "scores"):
            store.remove_unfinished(folder)
        store.write_text(out / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        for name, (pred, conf, label) in ({config.dataset.name: inside} | shifted | flat(groups)).items():
            with store.replacing(out / "scores" / f"{name}.npz") as work:
                np.savez(work, pred=pred, conf=conf, label=label)
        if shifted:
            write_rows(out / "csid.csv", accuracy_rows(shifted))
        if shifted and not full:
            write_rows(out / "fsood.csv", metric_rows(spectrum, groups))
        write_rows(out / "ood.csv", rows)
    return dict(rows)["nearood"]


def flat(groups: dict[str, dict[str, Verdict]]) -> dict[str, Verdict]:
    return {name: verdict for sets in groups.values() for name, verdict in sets.items()}


def metric_rows(inside: Verdict, groups: dict[str, dict[str, Verdict]]) -> list[tuple[str, np.ndarray]]:
    """The rows of ood.csv: METRICS of each OOD set against the ID images, and after each group its mean."""
    rows = []
    for group, sets in groups.items():
        found = []
        for outside in sets.values():
            pred, conf, label = (np.concatenate(pair) for pair in zip(inside, outside))
            found.append(compute_metrics(conf, label, pred))
            if (inside[0] == -1).all():
                found[-1][-1] = np.nan
        rows += [*zip(sets, found), (group, np.mean(found, axis=0))]
    return rows


def accuracy_rows(shifted: dict[str, Verdict]) -> list[tuple[str, np.ndarray]]:
    """The rows of csid.csv: the accuracy on each covariate-shifted set, and their mean; the other METRICS are NaN."""
    found = [np.nan if (pred == -1).all() else np.mean(pred == label) for pred, _, label in shifted.values()]
    return [(name, np.array([np.nan] * 4 + [hits])) for name, hits in zip([*shifted, "csid"], [*found, np.mean(found)])]


def write_rows(path: Path, rows: list[tuple[str, np.ndarray]]) -> None:
    """Writes rows of METRICS in percent, two decimals, as OpenOOD does; a dash where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", *METRICS])
    for name, values in rows:
        writer.writerow([name, *("-" if np.isnan(value) else f"{100 * value:.2f}" for value in values)])
    store.write_text(path, text.getvalue())


def fitted(cls: type[Postprocessor], args: Section, passes: Passes) -> Postprocessor:
    detector = cls(args)
    detector.fit(lambda split: passes.of(("dataset", split), cls), passes.head())
    return detector


def verdicts(detector: Postprocessor, passes: Passes, which: Set) -> Verdict:
    """Predictions, confidences and labels of a set; labels are -1 unless its images are of ID classes."""
    of = passes.of(which, type(detector))
    conf = detector.confidence(of).double().numpy()
    if np.isnan(conf).any():
        image = passes.image(which, int(np.flatnonzero(np.isnan(conf))[0]))
        raise InputError(f"{detector.name}: the score of {image} is not a number; check the checkpoint")
    label = of.labels.numpy()
    known = which[0] == "dataset" or which[1] == "csid"
    return detector.prediction(of).numpy(), conf, label if known else np.full_like(label, -1)


def best_on_validation(cls: type[Postprocessor], config: Config, passes: Passes) -> Postprocessor:
    """The detector with the hyperparameters of the best AUROC on ID validation against OOD validation images.

    Of equally good ones it is the last in OpenOOD's order, in which the first argument varies fastest.
    """
    sweep = config.postprocessor.postprocessor_sweep
    lists = []
    for name in cls.sweep:
        values = sweep.get(f"{name}_list")
        if not isinstance(values, list) or not values:
            raise InputError(
                f"postprocessor.postprocessor_sweep.{name}_list: expected a list of values, got {values!r}"
            )
        lists.append(values)
    combinations = [dict(zip(reversed(cls.sweep), values)) for values in itertools.product(*reversed(lists))]
    best, best_auroc = None, -1.0
    for args in [cls.arguments(config, **given) for given in combinations]:  # all are checked before the first is tried
        detector = fitted(cls, args, passes)
        sides = [verdicts(detector, passes, which) for which in (("dataset", "val"), ("ood_dataset", "val"))]
        pred, conf, label = (np.concatenate(pair) for pair in zip(*sides))
        auroc = compute_metrics(conf, label, pred)[1]
        if auroc >= best_auroc:
            best, best_auroc = detector, auroc
    return best
