"""A trained run that judges images: `Detector.load(run)(images)`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from openood_dream import plugins
from openood_dream._version import __version__
from openood_dream.config.schema import Section
from openood_dream.datasets.classnames import class_names
from openood_dream.datasets.given import Given, find_given, open_images
from openood_dream.datasets.images import ImageList, loader, placed
from openood_dream.device import enough_memory
from openood_dream.errors import InputError, warn
from openood_dream.evaluators.evaluate import best_on_validation, checked_scores, fitted, score_set
from openood_dream.evaluators.passes import Passes, forward_pass, passes_dir
from openood_dream.evaluators.verdicts import Verdicts, find_threshold
from openood_dream.experiment import Experiment
from openood_dream.networks.factory import check_network
from openood_dream.pipelines.finished import find_finished
from openood_dream.pipelines.test import identity_of, make_passes
from openood_dream.postprocessors.base import Images, Pass, Postprocessor, find_postprocessor
from openood_dream.reports.records import DETECTORS, read_detector
from openood_dream.store import artifacts, files

BYTES = 1 << 27  # of decoded images that are in memory at a time
VAL = ("dataset", "val")
LISTS = ("val", "train", "val_ood")  # inputs of a record that are lists of images


class Detector:
    """A trained network with a fitted postprocessor and a threshold; called with images it gives verdicts on them.

    Attributes:
        name: the postprocessor's name.
        threshold: the score from which on an image is taken for in-distribution.
        keep: the share of the ID validation images that reach it.
        class_names: the names of the classes, in label order.
    """

    def __init__(
        self, passes: Passes, postprocessor: Postprocessor, threshold: float, keep: float, class_names: Sequence[str]
    ) -> None:
        """Takes what was loaded; see `load`.

        Args:
            passes: those of the network over the data sets of its run.
            postprocessor: fitted.
            threshold: the score from which on an image is taken for in-distribution.
            keep: the share of the ID validation images that reach it.
            class_names: the names of the classes, in label order.
        """
        self.name, self.threshold, self.keep = postprocessor.name, threshold, keep
        self.class_names = tuple(class_names)
        self._passes, self._postprocessor = passes, postprocessor

    @classmethod
    @files.looked_once()
    def load(
        cls, run: str | Path, postprocessor: str | None = None, keep: float = 0.95, *, device: str | None = None
    ) -> Detector:
        """The detector of a finished run.

        The postprocessor learns from the run's ID training images where it needs some, with the hyperparameters that the
        run was scored with. The threshold is the score that a share of the ID validation images reach. Threshold and
        hyperparameters are kept in the run's folder (detectors/<name>.json), and are found there the next time.

        Args:
            run: the folder of a finished training (config.yml and best.ckpt), or of its scores.
            postprocessor: its name; if not given that of the scores, and ebo for a training.
            keep: the share of the ID validation images that are to be taken for in-distribution, above 0 and below 1.
            device: auto, cpu, mps, cuda or cuda:N; where the run's config says if not given.

        Raises:
            InputError: the folder is none of a finished run, the postprocessor is unknown or does not fit, `keep` is out
                of range, or images that are needed are not there.
        """
        if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep < 1:
            raise InputError(f"keep: expected a share above 0 and below 1, such as 0.95, got {keep!r}")
        found = find_finished(Path(run), postprocessor, device)
        experiment = found.experiment
        kind = find_postprocessor(experiment.postprocessor, experiment.network.name)
        check_network(experiment.network, **experiment.dataset.shape)
        loading = _Loading(kind, experiment, found.checkpoint, found.folder / DETECTORS)
        fitted, threshold = loading.settle(float(keep))
        return cls(loading.passes, fitted, threshold, float(keep), _names(experiment))

    def __call__(self, images: Any) -> Verdicts:
        """Judges images.

        The scores are those of the run's evaluation, to the last digit where the images come in the order of their list.

        Args:
            images: a tensor of one image (3, H, W) or several (N, 3, H, W), of uint8 or of floats from 0 to 1; a Pillow
                image; the path of a file, or of a folder with images anywhere in it; or a list of these.

        Raises:
            InputError: an image cannot be read, or there are none.
        """
        found, refused = self.judge(find_given(images))
        if refused:
            raise InputError(refused[0])
        return found

    def judge(self, images: Sequence[Given]) -> tuple[Verdicts, list[str]]:
        """Judges those images that can be read.

        Args:
            images: what datasets.given.find_given found.

        Returns:
            The verdicts, and a line about each of the other images.

        Raises:
            InputError: a score is not a number.
        """
        transform, batch = self._passes.data.transform, _batch_size(self._passes)
        size = max(1, BYTES // (3 * transform.image_size**2) // batch) * batch
        names, refused, parts = list[str](), list[str](), list[Any]()
        with tqdm(total=len(images), desc="predict", unit="image", leave=False, delay=2) as bar:
            for start in range(0, len(images), size):
                some = open_images(images[start : start + size], transform)
                names, refused = names + some.names, refused + some.refused
                for what, count in sorted(some.oddities.items()):
                    warn(f"{count} images with {what}, as in OpenOOD; save them without")
                if some.names:
                    parts.append(self._seen(ImageList.of_pixels(some.pixels, transform), batch))
                bar.update(min(size, len(images) - start))
        labels, scores = self._scored(parts, names)
        known = [self.class_names[label] if label >= 0 else "" for label in labels.tolist()]
        settings = self._postprocessor.args.model_dump()
        found = Verdicts(tuple(names), labels, tuple(known), scores, self.threshold, self.keep, self.name, settings)
        return found, refused

    def _seen(self, images: ImageList, batch: int) -> Any:
        """What the postprocessor needs of some images: a Pass, or confidence and prediction by the network itself."""
        passes, batches = self._passes, loader(images, batch, shuffle=False)
        with enough_memory(partial(passes.data.dataset.split("val").error, "batch_size"), f"{batch} images"):
            if not self._postprocessor.runs_network:
                return forward_pass(passes.net, placed(batches, passes.device), passes.device, bar=False)
            whole = Images(passes.net, batches, passes.device, passes.data.dataset.name)
            return self._postprocessor.confidence(whole), self._postprocessor.prediction(whole)

    def _scored(self, parts: Sequence[Any], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Classes and scores (N,) of what `_seen` gave."""
        if not parts:
            return np.empty(0, dtype=np.int64), np.empty(0)
        if self._postprocessor.runs_network:
            conf, predicted = (torch.cat(column) for column in zip(*parts))
        else:
            whole = _joined(parts)
            if whole.broken is not None:
                raise InputError(
                    f"{self.name}: the network's output for {names[whole.broken]} is not finite; check the checkpoint"
                )
            conf, predicted = self._postprocessor.confidence(whole), self._postprocessor.prediction(whole)
        return predicted.numpy(), checked_scores(self._postprocessor, conf, names.__getitem__)

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, threshold={self.threshold:.4g}, keep={self.keep:g})"


def _joined(parts: Sequence[Pass]) -> Pass:
    """Passes over some images after another as one."""
    logits, features, labels = zip(*((part.logits, part.features, part.labels) for part in parts))
    return Pass(torch.cat(logits), torch.cat(features), torch.cat(labels))


def _batch_size(passes: Passes) -> int:
    """How many images the network sees at once: as in the evaluation, since that decides about last digits."""
    dataset = passes.data.dataset
    return (dataset.test and dataset.test.batch_size) or dataset.split("val").needs_batch_size()


def _names(experiment: Experiment) -> list[str]:
    """The names of the classes where the config has them, else their numbers."""
    count = experiment.dataset.num_classes
    if not experiment.has("dream"):
        return [str(label) for label in range(count)]
    dream = experiment.dream
    return class_names(dream.class_names, count, partial(dream.error, "class_names"))


class _Loading:
    """Fits a detector and finds its threshold, or finds both in the run's record.

    Args:
        cls: the detector's class.
        experiment: the run's config, with the detector's settings.
        checkpoint: the weights.
        folder: where detectors are recorded.
    """

    def __init__(self, cls: type[Postprocessor], experiment: Experiment, checkpoint: Path, folder: Path) -> None:
        self.cls, self.experiment, self.settings = cls, experiment, experiment.postprocessor
        self.path = folder / f"{self.settings.name}.json"
        self.fits = self.cls.fit is not Postprocessor.fit
        ood = experiment.ood_dataset if experiment.has("ood_dataset") else None
        self.searches = self.settings.searches and ood is not None and ood.val is not None
        self.writes = True
        try:
            files.writable(folder.parent)
            cache_dir = passes_dir(checkpoint, folder.parent)
        except InputError as error:
            warn(f"{error}; the threshold is found anew each time")
            self.writes, experiment = False, experiment.changed({"evaluator.passes": False})
            cache_dir = None
        self.passes = make_passes(experiment, experiment.data, checkpoint, cache_dir)

    def settle(self, keep: float) -> tuple[Postprocessor, float]:
        """The fitted detector, and the score that a share `keep` of the ID validation images reach."""
        inputs = self._network_inputs()
        record = self._recorded()
        try:
            inputs |= self._lists()
        except InputError:
            if record is not None and self._stands_alone(record, inputs, keep):
                images = record["images"]
                warn(
                    f"{self.path}: the lists of the run are not there; the threshold is that of {images} images of before"
                )
                return self._made(record), record["thresholds"][repr(keep)]
            self.experiment.data.ensure()
            inputs |= self._lists()
        inputs = json.loads(json.dumps(inputs))
        if record is None or record["hash"] != files.fingerprint(inputs):
            record = None
        detector = self._made(record)
        if record is not None and repr(keep) in record["thresholds"]:
            return detector, record["thresholds"][repr(keep)]
        scores = score_set(detector, self.passes, VAL).conf
        try:
            threshold = find_threshold(scores, keep)
        except ValueError as error:
            raise self.settings.error("name", f"{error} (validation images); choose another detector") from None
        self._write(inputs, detector, {repr(keep): threshold}, len(scores))
        return detector, threshold

    def _made(self, record: dict[str, Any] | None) -> Postprocessor:
        """The fitted detector, with the hyperparameters of a record where there is one."""
        if record is not None:
            return fitted(self.cls, self._arguments(record), self.passes)
        if self.searches:
            return best_on_validation(self.cls, self.settings, self.passes)
        return fitted(self.cls, self.cls.arguments(self.settings), self.passes)

    def _arguments(self, record: dict[str, Any]) -> Section:
        try:
            return self.cls.arguments(self.settings, **record["args"])
        except (InputError, TypeError) as error:
            raise InputError(f"{self.path}: args: {error}; delete it and run again") from None

    # --------------------------------------------------------------------------------------------------- its record

    def _network_inputs(self) -> dict[str, Any]:
        """What decides about the threshold besides images."""
        settings = self.settings.model_dump()
        (settings["postprocessor_args"] or {}).pop("cache_dir", None)  # a place, which decides about nothing
        return {
            "checkpoint": self.passes.checkpoint,
            "network": self.passes.network,
            "transform": self.passes.data.transform.test_identity,
            "dataset": self.experiment.dataset.name,
            "postprocessor": settings | plugins.identity(self.cls),
        }

    def _lists(self) -> dict[str, str]:
        """The images that decide about the threshold; InputError where one is not there."""
        dataset = self.experiment.dataset
        found = {"val": identity_of(dataset.split("val"))}
        if self.fits:
            found["train"] = identity_of(dataset.split("train"))
        if self.searches:
            found["val_ood"] = identity_of(self.experiment.data.split("ood_dataset", "val"))
        return found

    def _stands_alone(self, record: dict[str, Any], inputs: dict[str, Any], keep: float) -> bool:
        """Whether a record is of this detector, which needs no images, and has the threshold."""
        there = {key: value for key, value in record["inputs"].items() if key not in LISTS}
        return not self.fits and there == json.loads(json.dumps(inputs)) and repr(keep) in record["thresholds"]

    def _recorded(self) -> dict[str, Any] | None:
        try:
            return read_detector(self.path)
        except FileNotFoundError:
            return None

    def _write(
        self, inputs: dict[str, Any], detector: Postprocessor, thresholds: dict[str, float], images: int
    ) -> None:
        """Adds thresholds to the record, or begins another one where it was of other weights, images or settings."""
        if not self.writes:
            return
        about = {"hash": files.fingerprint(inputs), "inputs": inputs, "code": __version__, "images": images}
        about["args"] = {name: getattr(detector.args, name) for name in self.cls.sweep}
        with artifacts.exclusive(self.path.parent):
            before = self._recorded()
            known = before["thresholds"] if before is not None and before["hash"] == about["hash"] else {}
            files.write_json(self.path, {**about, "thresholds": {**known, **thresholds}})
