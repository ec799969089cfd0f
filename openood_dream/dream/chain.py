"""The imagination from class names to images: the only place that knows the order of the stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from openood_dream.datasets.classnames import class_names
from openood_dream.datasets.images import ImageList
from openood_dream.datasets.loaders import Data
from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.features import make_outliers_around
from openood_dream.dream.forecast import forecast
from openood_dream.dream.generator.models import noise_schedule
from openood_dream.dream.generator.stage import check_size, make_generator, untrained
from openood_dream.dream.guided import Guidance
from openood_dream.dream.images import check_executor, imagined_label, make_images, make_latents
from openood_dream.dream.inversion import make_inversion
from openood_dream.dream.lines import make_lines
from openood_dream.dream.outliers import load_outliers, make_outliers
from openood_dream.dream.pairs import TrainingImages, check_pair, make_pairs
from openood_dream.dream.parts import check_parts, check_steps
from openood_dream.dream.plain import CLASSES, PER_CLASS, check_drawing, make_plain, spread
from openood_dream.dream.quality import Judge, make_quality, network_judge, space_judge
from openood_dream.dream.residuals import make_residuals
from openood_dream.dream.samplers import get_sampler
from openood_dream.dream.settings import DreamSettings, GeneratorTraining
from openood_dream.dream.shown import Findings, ImageSet
from openood_dream.dream.source import Source, given_source, make_text_source
from openood_dream.dream.space import check_space, load_space, make_space
from openood_dream.dream.starts import Starts
from openood_dream.networks.settings import AnyNetwork
from openood_dream.store.artifacts import Artifact, Missing, reusing_only


class Dream:
    """The imagination, stage by stage; each stage is made when it is first asked for, with all that it needs.

    Stages that were made before are found by a hash of what determines them, and nothing is computed again.

    Args:
        settings: the section `dream`.
        data: the ID images.
        device: where to compute: auto, cpu, mps, cuda or cuda:N.
        precision: number format of trainings: auto, float32 or bfloat16.
        executor: who draws images: local, or ray.
        worker_gpus: GPUs of a Ray worker; 0.5 lets two share one.
        network: the classifier whose checkpoint judges images where `dream.quality.checkpoint` is set.
        pairs: whether images to train with come in pairs, each outlier with its inlier.
    """

    def __init__(
        self,
        settings: DreamSettings,
        data: Data,
        *,
        device: str = "auto",
        precision: str = "auto",
        executor: str = "local",
        worker_gpus: float = 1,
        network: AnyNetwork | None = None,
        pairs: bool = False,
    ) -> None:
        self.settings, self.data, self.network, self.pairs = settings, data.coloured(), network, pairs
        self._seen = data  # as the classifier sees it
        self.device, self.precision = device, precision
        self.executor, self.worker_gpus = executor, worker_gpus

    # ---------------------------------------------------------------------------------------------- what is given

    @cached_property
    def names(self) -> list[str]:
        """The class names, in label order; InputError where they are not as many as classes."""
        error = partial(self.settings.error, "class_names")
        return class_names(self.settings.class_names, self.data.dataset.num_classes, error)

    @property
    def cache_dir(self) -> Path:
        """The folder of all artifacts."""
        return Path(self.settings.cache_dir)

    @property
    def training(self) -> GeneratorTraining | None:
        """How the generator is trained; None where a pipeline is given."""
        found = self.settings.generator
        return found if isinstance(found, GeneratorTraining) else None

    @property
    def _image_size(self) -> int:
        return self.data.dataset.image_size

    @cached_property
    def _train(self) -> ImageList:
        """The ID training images; a built-in benchmark is written where it is not there yet."""
        self.data.ensure()
        return self.data.images("dataset", "train")

    # ------------------------------------------------------------------------------------------------- the stages

    @cached_property
    def text_source(self) -> Source:
        """Where tokenizer and text encoder come from: the given pipeline, or the start of one that is to be trained."""
        pipeline = self.settings.generator
        if isinstance(pipeline, GeneratorTraining):
            return make_text_source(self.names, self.settings.synthesis.all_prompts, pipeline, self.cache_dir)
        about = self.settings.model_dump(include={"revision", "variant", "layout", "lora", "words"})
        return given_source(pipeline, about.pop("revision"), self.settings.where("generator"), **about)

    @cached_property
    def anchors(self) -> Artifact:
        """The token embeddings of the class names."""
        error = partial(self.settings.error, "class_names")
        return make_anchors(self.text_source, self.settings.synthesis.templates(self.names), self.cache_dir, error)

    @cached_property
    def space(self) -> Artifact:
        """Phase 1: the image encoder, and the embeddings of the training images."""
        settings, train, val = self.settings, self._train, self.data.images("dataset", "val")
        check_space(train, self.names, settings.space, partial(settings.error, "class_names"))
        if self._there("anchors", []) is None:  # then the space is to be made too: a broken image is found first
            for images in (train, val):
                images.decode()
        return make_space(
            self.anchors,
            train,
            val,
            settings.space,
            self.cache_dir,
            device=self.device,
            precision=self.precision,
            workers=self.data.dataset.num_workers,
        )

    @cached_property
    def generator(self) -> Artifact | None:
        """The pipeline that was trained on the ID images; None where one is given. Every process of a launch needs it."""
        if self.training is None:
            return None
        check_size(self.training, self._image_size)
        space = self.space
        return make_generator(
            space,
            self.text_source,
            self.anchors,
            self.names,
            self._train,
            self.training,
            space_settings=self.settings.space,
            synthesis=self.settings.synthesis,
            cache_dir=self.cache_dir,
            device=self.device,
            precision=self.precision,
            flip=bool(self.data.transform.flip),
            workers=self.data.dataset.num_workers,
        )

    @cached_property
    def source(self) -> Source:
        """The pipeline that draws: the given one, or the one that is trained here."""
        if self.generator is None:
            return self.text_source
        return Source(str(self.generator.path), None, {"generator": self.generator.hash})

    @cached_property
    def inversion(self) -> Artifact | None:
        """The training images as the generator embeds them; None where the encoder does."""
        if self.settings.space.method == "encoder":
            return None
        settings, space = self.settings, self.space  # first: what is wrong with names or images is found in it
        get_sampler(settings.outliers).check_counts(load_space(space)["labels"].bincount().tolist(), self.names)
        rest = settings.space, settings.synthesis, self.cache_dir
        return make_inversion(self.source, self.names, self._train, *rest, device=self.device)

    @property
    def embedded(self) -> Artifact:
        """The embeddings of training images that outliers are sampled around."""
        return self.inversion or self.space

    @cached_property
    def outliers(self) -> Artifact:
        """Phase 2a: embeddings of outliers, or inliers."""
        settings, names = self.settings, self.names
        if settings.outliers.neighbours == "class":  # the rest can be said only of a space that is made
            get_sampler(settings.outliers).check_counts([settings.space.per_class] * len(names), names)
        space = self.embedded
        return make_outliers(
            self.anchors,
            space,
            names,
            settings.outliers,
            settings.space.temperature,
            self.cache_dir,
            device=self.device,
        )

    @cached_property
    def images(self) -> ImageSet:
        """Phase 2b: the images of the embeddings."""
        check_executor(self.executor)
        self._check_size()
        if self._there("outliers", []) is None:  # then long stages come first
            self._check_drawing()
        synthesis, outliers, source = self.settings.synthesis, self.outliers, self.source
        if self._there("plain_samples", []) is None:
            load_outliers(outliers)  # a damaged file is found before anything is drawn
        _ = self.plain_samples  # first: they say whether the generator knows its classes
        residuals = partial(
            make_residuals, source=source, images=self._train, settings=synthesis, cache_dir=self.cache_dir
        )
        made = make_images(
            source,
            outliers,
            self.names,
            synthesis,
            self.cache_dir,
            keeps_class=self._keeps_class,
            device=self.device,
            executor=self.executor,
            worker_gpus=self.worker_gpus,
            residuals=residuals if synthesis.residual else None,
            starts=self._starts(),
            guidance=self._guidance(),
        )
        return ImageSet.of(made)

    def latents(self, total: int) -> Artifact:
        """Latents that images would be decoded from.

        Args:
            total: how many of all classes together; each has as many, and one at least.
        """
        outliers, source = self.outliers, self.source
        synthesis = self.settings.synthesis.model_copy(update={"per_class": math.ceil(total / len(self.names))})
        return make_latents(
            source,
            outliers,
            self.names,
            synthesis,
            self.cache_dir,
            device=self.device,
            starts=self._starts() if synthesis.init == "id" else None,
            guidance=self._guidance(),
        )

    def _starts(self) -> Starts | None:
        """The ID images that drawing starts from, or that pairs have, if any."""
        synthesis = self.settings.synthesis
        if synthesis.init == "noise" and not synthesis.pair:
            return None
        space = load_space(self.embedded)
        return Starts(
            self._train, space["rows"], space["labels"], space["embeddings"].float(), load_anchors(self.anchors)
        )

    def _guidance(self) -> Guidance | None:
        """What guides the drawing, if anything does: the judge of the quality stage."""
        guide = self.settings.synthesis.guide
        if not guide.active:
            return None
        judge, data = self._judge()
        return Guidance(guide, judge, data.images("dataset", "train"), load_space(self.space)["rows"])

    def outliers_around(self, net: nn.Module, weights: str) -> Artifact:
        """Embeddings of outliers, sampled as `outliers` are, but around the features of a classifier.

        Args:
            net: a trained classifier in OpenOOD's protocol, for the ID images as it sees them.
            weights: sha256 of its weights.
        """
        return make_outliers_around(
            net,
            weights,
            self._seen.images("dataset", "train"),
            self.names,
            self.settings,
            device=self.device,
            workers=self.data.dataset.num_workers,
        )

    @cached_property
    def quality(self) -> Findings:
        """What a judge says of the images, and which of them the filter keeps."""
        settings = self.settings
        if settings.quality.checkpoint is not None and self._there("images", []) is None:
            self._network_judge.load()  # before anything is drawn: it may be missing, or not fit
        drawn = self.images
        judge, data = self._judge()
        made = make_quality(
            drawn,
            judge,
            data,
            self.names,
            settings.quality,
            settings.filter,
            self.cache_dir,
            inliers=self._keeps_class,
            device=self.device,
        )
        return Findings.of(made)

    # --------------------------------------------------------------------------------------- what is made of them

    def training_images(self) -> TrainingImages:
        """The imagined images to train with: all of the image set, or what `dream.filter` leaves of it."""
        kept: Artifact = self.quality if self.settings.filter.active else self.images
        if self.pairs:
            kept = make_pairs(self.images, kept, self.cache_dir)
        description = imagined_label(self.settings.outliers.method)
        trained = [self.generator] if self.generator else []
        made = [self.embedded, self.space, *trained, self.plain_samples, self.outliers, self.images, kept]
        warnings = list(dict.fromkeys(text for artifact in made for text in artifact.warnings))
        return TrainingImages(kept.path / "imglist.txt", self.images.path, kept.hash, description, warnings)

    @cached_property
    def plain_samples(self) -> Artifact:
        """Images of plain prompts of some classes, and how often the space's classifier sees the class in them."""
        return self.plain(
            *self._shown,
            # a space that knows no classes itself cannot say, and has a warning of its own
            None if self.space.warnings else self._space_judge(),
        )

    def plain(self, per_class: int, labels: Sequence[int] | None = None, judge: Judge | None = None) -> Artifact:
        """Images of plain prompts, which show what the generator knows.

        Args:
            per_class: images of each class.
            labels: the classes that are drawn; None: all.
            judge: who says whether the class of the prompt is seen in them; None: nobody.
        """
        source = self.source
        return make_plain(
            source,
            self.names,
            self.settings.synthesis,
            self.cache_dir,
            per_class=per_class,
            labels=labels,
            anchors=self.anchors if self.training else None,
            judge=judge,
            transform=self.data.transform,
            device=self.device,
        )

    def lines(self, labels: Sequence[int], noises: int) -> Artifact:
        """Images along the line from a class's anchor to its farthest outlier.

        Args:
            labels: the classes that are drawn.
            noises: rows of images of each class, each in a noise of its own.
        """
        outliers, source = self.outliers, self.source
        return make_lines(
            source,
            outliers,
            self.anchors,
            self.names,
            self.settings.synthesis,
            self.cache_dir,
            labels=labels,
            noises=noises,
            trained=self.training is not None,
            device=self.device,
        )

    def forecast(self) -> str:
        """What `images` would draw, and how long it would take here, in lines of text. Writes nothing."""
        self._check_size()
        missing: list[str] = []
        source, outliers = self._there("source", missing), self._there("outliers", missing)
        return forecast(
            source,
            outliers,
            self.names,
            self.settings.synthesis,
            self.cache_dir,
            untrained=self._untrained,
            missing=missing,
            device=self.device,
            starts=self._starts() if outliers else None,
            guidance=self._guidance() if outliers else None,
            plain=[self._shown[0]] * len(self._shown[1]) if self._there("plain_samples", []) is None else [],
        )

    # ------------------------------------------------------------------------------------------------------ parts

    @property
    def _shown(self) -> tuple[int, list[int]]:
        """How many images of plain prompts show what the generator knows, and of which classes."""
        return min(PER_CLASS, self.settings.synthesis.per_class), spread(len(self.names), CLASSES)

    @property
    def _keeps_class(self) -> bool:
        """Whether the images still belong to their class."""
        return get_sampler(self.settings.outliers).keeps_class

    def _check_size(self) -> None:
        """InputError for images of another size than the generator that is trained here knows, or for pairs of inliers."""
        check_pair(self.settings.synthesis, self._keeps_class, self.pairs)
        if self.training is not None:
            check_size(self.training, self._image_size, self.settings.synthesis)

    def _check_drawing(self) -> None:
        """InputError where the pipeline's parts do not fit each other, or its scheduler does not take the steps."""
        if self.training is None:
            check_parts(self.text_source, self.settings.synthesis)
            check_drawing(self.text_source, self.names, self.settings.synthesis, self.device)
        else:
            noise = noise_schedule(self.training.prediction)
            check_steps(type(noise).__name__, dict(noise.config), self.settings.synthesis)

    def _judge(self) -> tuple[Judge, Data]:
        """Who judges images, and the data as it sees them."""
        if self.settings.quality.checkpoint is None:
            return self._space_judge(), self.data
        return self._network_judge, self._seen

    def _space_judge(self) -> Judge:
        return space_judge(self.anchors, self.space, self.settings.space, self._image_size)

    @cached_property
    def _network_judge(self) -> Judge:
        if self.network is None:
            raise self.settings.quality.error("checkpoint", "is of `network`, and the config has no such section")
        return network_judge(self.settings.quality, self.network, self._seen.dataset.shape)

    def _there(self, name: str, missing: list[str]) -> Any:
        """A stage that is made already; else None, and the stage that is not goes to `missing`."""
        try:
            with reusing_only():
                return getattr(self, name)
        except Missing as stage:
            if str(stage) not in missing:
                missing.append(str(stage))
            return None

    def _untrained(self) -> Any:
        assert self.training is not None  # noqa: S101 # nosec B101 (else there is a pipeline)
        return untrained(self.names, self.training, synthesis=self.settings.synthesis, image_size=self._image_size)
