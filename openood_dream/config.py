"""OpenOOD's YAML grammar, typed and checked: files, overrides and references become one validated Config.

Several files are merged left to right, `--key.sub value` overrides them, `'@{key.sub}'` refers to another key, and then
the sections that are ours are validated. Whatever is wrong ends in an InputError, one line that names the file and key.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError


class InputError(Exception):
    """Bad input; the message is one line that names file, key and value, and says what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Config(dict):
    """A dict whose keys are attributes, a missing one None, and whose nested dicts are Configs, as in OpenOOD."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, Config(value) if isinstance(value, dict) and not isinstance(value, Config) else value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy and pickle ask for special methods and must hear that there are none
            raise AttributeError(key)
        return self.get(key)

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def at(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key such as "dream.outliers.k", or `default` where there is none."""
        return _lookup(self, key.split("."), default)

    def to_dict(self) -> dict[str, Any]:
        """The same tree of plain dicts and lists, for yaml.safe_dump."""
        return plain(self)


def plain(value: Any) -> Any:
    """A config, OpenOOD's included, as plain dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


_MISSING = object()


def _lookup(value: Any, path: Iterable[str | int], default: Any = None) -> Any:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return default
    return value


# ---------------------------------------------------------------------------------------------------------------------
# The sections that are ours
# ---------------------------------------------------------------------------------------------------------------------


class _Expects(NamedTuple):
    """What a field's error message says was expected, where its type alone would say too little."""

    text: str


def _rule(holds: bool, text: str, *keys: str) -> None:
    """Report `text` unless a rule beyond types holds: at the first of `keys` that is set, or at the checked field."""
    if not holds:
        raise PydanticCustomError("rule", "{text}", {"keys": keys, "text": text})


def _each_once(values: list) -> None:
    _rule(len(values) > 0, "expected at least one entry, got an empty list")
    for value, count in Counter(values).items():
        _rule(count == 1, f"expected each entry once, got {value!r} {count} times")


def _not_blank(text: Any) -> Any:
    if isinstance(text, str) and not text.strip():
        raise ValueError("blank")
    return text


_Name = Annotated[str, BeforeValidator(_not_blank), _Expects("text that is not blank")]
_Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of the config, or of another room's arguments: keys that are not its own are refused."""

    # defer_build: most commands need few of the sections, and importing this module must be cheap
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class RunSettings(Section):
    """The top-level keys that are ours: where and how to compute."""

    backend: Literal["auto", "openood", "standalone"] = Field(
        "auto", description="who runs the pipelines; auto: openood where it can be imported"
    )
    device: Annotated[str, _Expects("auto, cpu, mps, cuda or cuda:N")] = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: a GPU where there is one"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of training")
    compile: bool = Field(
        False, description="standalone: whether torch.compile makes the network faster before it is trained"
    )
    resume: bool = Field(True, description="standalone: whether a training that was interrupted goes on")
    seed: _Seed = Field(0, description="seed of training")
    executor: Literal["local", "ray"] = Field(
        "local", description="who draws images: this process, or Ray workers on many GPUs and machines"
    )


_SWITCHES = [name for name, field in RunSettings.model_fields.items() if field.annotation is bool]  # need no value


def _channels(multiple: int) -> Any:
    width = Annotated[int, Field(ge=multiple, multiple_of=multiple)]
    return Annotated[list[width], Field(min_length=1), _Expects(f"a list of multiples of {multiple}")]


class GeneratorTraining(Section):
    """`dream.generator: {train: small}`: a small Stable-Diffusion-format pipeline trained on the ID images."""

    train: Literal["small"] = Field(description="which architecture to train")
    seed: _Seed = Field(0, description="seed of weights, batches and noise")
    size: int | None = Field(None, ge=8, description="pixels a side of its images; null: the classifier's")
    vae_channels: _channels(8) = Field(
        [32, 32, 64], description="channels of the VAE's levels; each level after the first halves the image"
    )
    latent_channels: int = Field(8, ge=1, description="channels of the latents")
    unet_channels: _channels(16) = Field(
        [64], description="channels of the UNet's levels; each level after the first halves the latents"
    )
    unet_layers: int = Field(1, ge=1, description="residual blocks per level of the UNet")
    pooled_text: bool = Field(
        False, description="pooled text modulates all blocks of the UNet too, beside its attention to the text"
    )
    steps: int = Field(3000, ge=1, description="optimiser steps of the UNet")
    vae_steps: int = Field(600, ge=1, description="optimiser steps of the VAE")
    batch_size: int = Field(128, ge=1, description="images per step of the UNet, over all processes")
    vae_batch_size: int = Field(16, ge=1, description="images per step of the VAE, over all processes")
    lr: float = Field(1e-3, gt=0, description="learning rate of the UNet at its peak")
    vae_lr: float = Field(3e-3, gt=0, description="learning rate of the VAE at its peak")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of the UNet's weights that is saved")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of this training; auto: float32 on a CPU, elsewhere as the key precision says",
    )
    prediction: Literal["epsilon", "v_prediction"] = Field("epsilon", description="what the UNet predicts")
    min_snr: float | None = Field(
        None, gt=0, description="cap on the signal-to-noise ratio that weights the loss (min-SNR); null: no weights"
    )
    embedding_fraction: float = Field(
        0.7,
        ge=0,
        le=1,
        description="share of samples conditioned on the image's own embedding instead of its class token",
    )
    embedding_noise: float = Field(
        0.0, ge=0, description="deviation of Gaussian noise on the image's own embedding, measured as outliers.sigma is"
    )
    empty_fraction: float = Field(0.1, ge=0, le=1, description="share of samples with the empty prompt, for guidance")
    text_dim: int = Field(64, ge=1, description="width m of the token embeddings")
    anchor_norm: float = Field(0.4, gt=0, description="norm of the class anchors")
    checkpoint_every: int = Field(500, ge=1, description="steps between two savings of the training's state")
    samples_every: int | None = Field(
        None, ge=1, description="steps between two grids of samples; null: one grid, at the end"
    )

    @model_validator(mode="after")
    def _shares(self) -> GeneratorTraining:
        own, empty = self.embedding_fraction, self.empty_fraction
        text = f"expected embedding_fraction + empty_fraction <= 1, got {own:g} + {empty:g}"
        _rule(own + empty <= 1 + 1e-9, text, "embedding_fraction", "empty_fraction")
        return self


class AnchorSettings(Section):
    """`dream.anchors`: the token embeddings T(y) of the class names."""

    multi_token: Literal["mean", "first", "last"] = Field(
        "mean", description="what stands for a class name of several tokens"
    )


class SpaceSettings(Section):
    """`dream.space`: phase 1, the text-conditioned latent space (DREAM-OOD Eq. 2)."""

    network: _Name = Field("timm:resnet34", description="image encoder")
    network_args: dict[str, Any] = Field({}, description="further arguments of the image encoder")
    epochs: int = Field(200, ge=1, description="training epochs")
    batch_size: int = Field(256, ge=1, description="images per step")
    lr: float = Field(0.1, gt=0, description="learning rate at the start of the cosine schedule")
    momentum: float = Field(0.9, gt=0, lt=1, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    temperature: float = Field(0.1, gt=0, description="temperature t of the cosine softmax")
    per_class: int = Field(500, ge=1, description="embeddings kept per class")
    seed: _Seed = Field(0, description="seed of weights and batches")


class OutlierSettings(Section):
    """`dream.outliers`: phase 2a, embeddings of outliers or inliers (DREAM-OOD Sec. 3.2; BOOD for `boundary`)."""

    method: Literal["knn", "inlier", "boundary", "plain"] = Field(
        "knn", description="how embeddings are found; plain: none are, the class's own anchor stands for them"
    )
    k: int = Field(300, ge=1, description="which nearest neighbour measures the distance")
    sigma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        0.07, description="standard deviation of the Gaussian draws; auto: found for each class, by multiple"
    )
    multiple: float = Field(
        1.1, gt=0, description="sigma auto: median distance of the kept, over the 99th percentile of ID distances"
    )
    select: int = Field(
        50, ge=1, description="boundary points of a class: its farthest embeddings, or nearest with method inlier"
    )
    n_boundary: int = Field(50, ge=1, description="boundary points used in a round")
    n_draws: int = Field(1500, ge=1, description="Gaussian draws around each boundary point")
    keep: int = Field(2, ge=1, description="candidates kept per boundary point and round")
    rounds: int = Field(100, ge=1, description="repetitions with fresh draws")
    selection: Literal["far", "random"] = Field(
        "far", description="which candidates are kept; far: the farthest, and the nearest with method inlier"
    )
    neighbours: Literal["class", "all"] = Field(
        "class", description="whose embeddings count as neighbours: the class's own, or all"
    )
    seed: _Seed = Field(0, description="seed of the draws")
    step_size: float = Field(0.015, gt=0, description="boundary: step a along the sign of the gradient")
    extra_steps: int = Field(2, ge=0, description="boundary: steps c beyond the crossing")
    max_steps: int = Field(100, ge=1, description="boundary: steps after which an embedding is given up")
    fraction: float = Field(
        0.05, gt=0, le=1, description="boundary: share of each class that is used, the one that crosses soonest"
    )

    @model_validator(mode="after")
    def _counts(self) -> OutlierSettings:
        for few, many in (("keep", "n_draws"), ("n_boundary", "select")):
            less, more = getattr(self, few), getattr(self, many)
            _rule(less <= more, f"expected {few} <= {many}, got {few} {less} and {many} {more}", few, many)
        return self


def _one_place(text: Any) -> Any:
    if isinstance(text, str) and re.findall(r"\{\}|[{}]", text) != ["{}"]:
        raise ValueError("not exactly one {}")
    return text


class SynthesisSettings(Section):
    """`dream.synthesis`: phase 2b, embeddings to images with the diffusion model."""

    per_class: int = Field(1000, ge=1, description="images per class")
    prompt: Annotated[
        str,
        BeforeValidator(_one_place),
        _Expects("text with {} once, where the class name goes, and no other braces"),
    ] = Field("A high-quality image of the {}", description="prompt; {} is the class name")
    negative_prompt: str = Field("", description="prompt of the unconditional half of the guidance")
    steps: int = Field(20, ge=1, description="denoising steps")
    scheduler: Literal["dpmsolver++", "pndm", "ddim", "euler", "lcm", "own"] = Field(
        "dpmsolver++", description="sampler; own: the pipeline's"
    )
    guidance: float = Field(7.5, ge=0, description="classifier-free guidance scale; 1 and below: off")
    batch_size: int = Field(32, ge=1, description="images per batch")
    size: int | None = Field(
        512, ge=8, multiple_of=8, description="pixels a side that are generated; null: the model's"
    )
    save_size: int | None = Field(256, ge=1, description="pixels a side that are saved; null: as generated")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="number format of the pipeline"
    )
    slicing: bool = Field(False, description="attention and VAE in slices: slower, for when memory is short")
    compile: bool = Field(False, description="compile the UNet with torch.compile, which pays off for large sets")
    residual: bool = Field(
        False,
        description="whether what the autoencoder loses of a random ID training image is added to each image, so that"
        " outliers cannot be told from ID by lost detail",
    )
    seed: _Seed = Field(0, description="seed of the noise")
    shard_size: int = Field(256, ge=1, description="images per shard, the unit of resuming and distributing")


class QualitySettings(Section):
    """`dream.quality`: how imagined images are judged."""

    checkpoint: _Name | None = Field(
        None, description="a checkpoint of `network` as the judge; null: the cosine classifier of the space"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="from which confidence in its own class an image counts")
    k: int = Field(5, ge=1, description="which nearest ID training feature measures the distance")


class FilterSettings(Section):
    """`dream.filter`: which imagined images are not trained with; null and false: none for that reason."""

    confidence: float | None = Field(
        None, gt=0, lt=1, description="outliers whose class is surer than this, inliers whose class is less sure"
    )
    distance: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="outliers whose feature is nearer to ID than this share of ID validation images"
        " is, inliers whose feature is farther",
    )
    duplicates: bool = Field(False, description="images that look like an earlier one")

    @property
    def active(self) -> bool:
        return self.confidence is not None or self.distance is not None or self.duplicates


def _training(generator: Any) -> Any:
    return GeneratorTraining.model_validate(generator) if isinstance(generator, dict) else generator


class DreamSettings(Section):
    """`dream`: everything of the imagination, shared by its stages."""

    class_names: Annotated[_Name | list[_Name], _Expects("a file or a list of names")] = Field(
        description="the ID classes in label order: a text file of one name a line, or a list"
    )
    generator: Annotated[
        _Name | GeneratorTraining,
        BeforeValidator(_training),
        _Expects("a model's hub id, a local folder or {train: small}"),
    ] = Field(description="the diffusion model")
    revision: _Name | None = Field(None, description="hub revision of the generator")
    anchors: AnchorSettings = Field(default_factory=AnchorSettings, description="class anchors")
    space: SpaceSettings = Field(default_factory=SpaceSettings, description="phase 1")
    outliers: OutlierSettings = Field(default_factory=OutlierSettings, description="phase 2a")
    synthesis: SynthesisSettings = Field(default_factory=SynthesisSettings, description="phase 2b")
    quality: QualitySettings = Field(default_factory=QualitySettings, description="how the images are judged")
    filter: FilterSettings = Field(default_factory=FilterSettings, description="which images are dropped")
    cache_dir: _Name = Field("results/dream", description="where the stages keep their artifacts")

    @field_validator("class_names")
    @classmethod
    def _distinct(cls, names: str | list[str]) -> str | list[str]:
        if isinstance(names, list):
            _each_once(names)
        return names


class BaseTrainer(Section):
    """`trainer.name: base`: plain cross-entropy."""

    name: Literal["base"] = Field(description="the trainer")


_Implementation = Annotated[
    Literal["openood", "ours"], Field(description="which one trains where the backend is OpenOOD; ours everywhere else")
]


class OE(Section):
    """`trainer.name: oe`: Outlier Exposure."""

    name: Literal["oe"] = Field(description="the trainer")
    lambda_oe: float = Field(0.5, ge=0, description="weight of the outlier loss")
    implementation: _Implementation = "openood"


class DreamOOD(Section):
    """`trainer.name: dream_ood`: phase 3, energy regularisation with imagined outliers."""

    name: Literal["dream_ood"] = Field(description="the trainer")
    beta: float = Field(1.0, ge=0, description="weight of the outlier loss")
    loss: Literal["energy", "oe", "extra_class"] = Field(
        "energy",
        description="what is learned from outliers: lower energy, the uniform prediction, or a class of their own",
    )


class DreamID(Section):
    """`trainer.name: dream_id`: cross-entropy on ID images and imagined inliers."""

    name: Literal["dream_id"] = Field(description="the trainer")
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of each batch that inliers replace; null: a batch of them is added"
    )


def _not_more(section: Any, *pairs: tuple[str, str]) -> Any:
    """The section, checked: of each pair of keys the first is at most the second."""
    for few, many in pairs:
        less, more = getattr(section, few), getattr(section, many)
        _rule(less <= more, f"expected {few} <= {many}, got {less} and {more}", few, many)
    return section


class VOS(Section):
    """`trainer.name: vos`: virtual outliers from class Gaussians."""

    name: Literal["vos"] = Field(description="the trainer")
    loss_weight: float = Field(0.1, ge=0, description="weight of the outlier loss")
    sample_number: int = Field(1000, ge=1, description="features kept of each class")
    sample_from: int = Field(10000, ge=1, description="draws from each class's Gaussian")
    select: int = Field(1, ge=1, description="least likely draws that are used of each class")
    start_epoch: int = Field(40, ge=0, description="first epoch with outliers")
    implementation: _Implementation = "openood"

    @model_validator(mode="after")
    def _counts(self) -> VOS:
        return _not_more(self, ("select", "sample_from"))


class NPOSArguments(Section):
    """`trainer.trainer_args` of npos, by OpenOOD's names."""

    proto_m: float = Field(0.95, ge=0, lt=1, description="momentum of the class prototypes")
    temp: float = Field(0.1, gt=0, description="temperature of dispersion and compactness")
    w_disp: float = Field(0.5, ge=0, description="weight of the dispersion")
    w_comp: float = Field(1.0, ge=0, description="weight of the compactness")
    loss_weight: float = Field(0.1, ge=0, description="weight of the outlier loss")
    sample_number: int = Field(1000, ge=1, description="features kept of each class")
    sample_from: int = Field(600, ge=1, description="Gaussian draws around each boundary point")
    K: int = Field(300, ge=1, description="which nearest neighbour measures the distance")
    cov_mat: float = Field(0.1, gt=0, description="standard deviation of the draws")
    select: int = Field(200, ge=1, description="boundary points of a class: its farthest features")
    pick_nums: int = Field(2, ge=1, description="boundary points used in a step")
    ID_points_num: int = Field(200, ge=1, description="candidates kept per boundary point")
    start_epoch_KNN: int = Field(40, ge=0, description="first epoch with outliers")

    @model_validator(mode="after")
    def _counts(self) -> NPOSArguments:
        numbers = [("K", "sample_number"), ("select", "sample_number")]
        return _not_more(self, ("ID_points_num", "sample_from"), ("pick_nums", "select"), *numbers)


class NPOS(Section):
    """`trainer.name: npos`: CIDER's losses, and outliers around features that lie far from their class."""

    name: Literal["npos"] = Field(description="the trainer")
    trainer_args: NPOSArguments = Field(default_factory=NPOSArguments, description="the method's numbers")
    implementation: _Implementation = "openood"


class TeacherSettings(Section):
    """`trainer.teacher`: the network that OAL's student learns from."""

    network: _Name = Field("timm:vit_base_patch16_224", description="the teacher")
    args: dict[str, Any] = Field(
        {}, description="further arguments of the teacher; pretrained: true fetches its weights"
    )
    checkpoint: _Name | None = Field(
        None, description="its trained weights; null: trained first, by trainer base, and kept in dream.cache_dir"
    )
    epochs: int = Field(50, ge=1, description="epochs of its training")
    lr: float = Field(0.01, gt=0, description="learning rate of its training")


class OAL(Section):
    """`trainer.name: oal`: distillation from a teacher, and little information shared with outliers."""

    name: Literal["oal"] = Field(description="the trainer")
    logits: float = Field(4.0, ge=0, description="weight of the distillation of logits")
    features: float = Field(8.0, ge=0, description="weight of the distillation of features")
    knn: float = Field(0.1, ge=0, description="weight of the information shared with k-NN outliers")
    latents: float = Field(0.2, ge=0, description="weight of the information shared with latents of outlier prompts")
    translator_lr: float = Field(0.01, gt=0, description="learning rate of what translates the teacher's features")
    club_lr: float = Field(1e-4, gt=0, description="learning rate of CLUB's q")
    teacher: TeacherSettings = Field(default_factory=TeacherSettings, description="the teacher")


class FRL(Section):
    """`trainer.name: frl`: maximum likelihood of a generative network."""

    name: Literal["frl"] = Field(description="the trainer")
    frequency: bool = Field(True, description="whether the network also models the images' high-frequency channel")


TRAINER_SETTINGS: dict[str, type[BaseModel]] = {
    "base": BaseTrainer,
    "oe": OE,
    "dream_ood": DreamOOD,
    "dream_id": DreamID,
    "vos": VOS,
    "npos": NPOS,
    "oal": OAL,
    "frl": FRL,
}


class GenerativeNetwork(Section):
    """`network` where it is a generative model: what the three have in common. Their defaults are the papers' sizes."""

    name: _Name = Field(description="the model")
    image_size: int = Field(ge=8, description="pixels a side")
    channels: Literal[1, 3] = Field(3, description="3: colours, 1: grey")
    frequency: bool = Field(False, description="whether the high-frequency channel is modelled too")
    normalization_type: str | None = Field(None, description="the data set's, to be undone")
    num_classes: int | None = Field(None, description="not used; classifiers need it")
    num_gpus: int | None = Field(None, description="OpenOOD's number of processes")
    pretrained: bool = Field(False, description="whether to load the checkpoint")
    checkpoint: str | None = Field(None, description="file of the weights")

    def _needs_multiple(self, of: int, why: str) -> None:
        text = f"expected a multiple of {of} ({why}), got {self.image_size}"
        _rule(self.image_size % of == 0, text, "image_size")


class VAENetwork(GenerativeNetwork):
    """`network.name: vae`."""

    latent: int = Field(200, ge=1, description="numbers in the latent vector z")
    width: int = Field(64, ge=1, description="channels at half of the size; double at each further halving")

    @model_validator(mode="after")
    def _size(self) -> VAENetwork:
        text = f"expected a power of two, got {self.image_size}"
        _rule(self.image_size & (self.image_size - 1) == 0, text, "image_size")
        return self


class GlowNetwork(GenerativeNetwork):
    """`network.name: glow`."""

    levels: int = Field(3, ge=1, description="scales, each of half the size of the one before")
    steps: int = Field(32, ge=1, description="steps of flow a level")
    width: int = Field(512, ge=1, description="channels of the coupling networks")

    @model_validator(mode="after")
    def _size(self) -> GlowNetwork:
        self._needs_multiple(2**self.levels, f"{self.levels} levels")
        return self


class PixelCNNppNetwork(GenerativeNetwork):
    """`network.name: pixelcnnpp`."""

    resnets: int = Field(5, ge=1, description="gated blocks at each size, down and up")
    filters: int = Field(160, ge=1, description="channels")
    mixtures: int = Field(10, ge=1, description="logistics in the mixture of a pixel")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout in the gated blocks")

    @model_validator(mode="after")
    def _size(self) -> PixelCNNppNetwork:
        self._needs_multiple(4, "three sizes")
        return self


GENERATIVE_SETTINGS: dict[str, type[GenerativeNetwork]] = {
    "vae": VAENetwork,
    "glow": GlowNetwork,
    "pixelcnnpp": PixelCNNppNetwork,
}


class BenchmarkSettings(Section):
    """`benchmark`: methods x seeds x postprocessors."""

    methods: Annotated[dict[str, list[_Name]], _Expects("a mapping of labels to lists of config files")] = Field(
        description="label -> config files laid over the common config; the label names the run's folder"
    )
    seeds: list[_Seed] = Field(description="seeds that every method is trained with")
    postprocessors: list[_Name] = Field(
        description="detectors that score every trained network; a method's own files may name others for it"
    )

    vary: _Name | None = Field(None, description="a key that each method is trained with all `values` of")
    values: list[float | int | str] = Field([], description="values of the key `vary`; the report plots against them")

    @field_validator("methods")
    @classmethod
    def _labels_name_folders(cls, methods: dict[str, list[str]]) -> dict[str, list[str]]:
        _rule(len(methods) > 0, "expected at least one label with its config files, got an empty mapping")
        for label in methods:
            fits = label.strip() not in ("", ".", "..") and not set(label) & set("/\\\0")
            _rule(fits, f"expected labels that can name a folder, got {label!r}")
        return methods

    @field_validator("seeds", "postprocessors")
    @classmethod
    def _distinct(cls, values: list) -> list:
        _each_once(values)
        return values

    @model_validator(mode="after")
    def _both_or_none(self) -> BenchmarkSettings:
        _rule((self.vary is None) == (not self.values), "expected vary and values together", "vary", "values")
        return self


# ---------------------------------------------------------------------------------------------------------------------
# Where each value came from
# ---------------------------------------------------------------------------------------------------------------------

_COMMAND_LINE = "command line"
_Path = tuple[str | int, ...]


class _Origin(NamedTuple):
    file: str
    order: int  # counts up over all files in merge order, so that the first mistake can be told from later ones


_UNKNOWN = _Origin("", -1)
_Origins = dict[_Path, _Origin]


def _origins(config: dict) -> _Origins:
    return getattr(config, "__dict__", {}).get("_origins", {})


def _origin(origins: _Origins, path: _Path) -> _Origin:
    """Who set this key, or else who last wrote in it, or else in the section that lacks it."""
    for end in range(1, len(path) + 1):  # a value that was set whole: a reference to a section, a list
        if path[:end] in origins:
            return origins[path[:end]]
    for end in range(len(path), 0, -1):
        inside = [origin for key, origin in origins.items() if key[:end] == path[:end]]
        if inside:  # an override is seldom to blame for what the rest of its section lacks
            return max([o for o in inside if o.file != _COMMAND_LINE] or inside, key=lambda o: o.order)
    return _UNKNOWN


def origin(config: dict, key: str) -> str:
    """The file (or "command line") that set a dotted key or, where it is not set, wrote its section, else "config"."""
    return _origin(_origins(config), tuple(key.split("."))).file or "config"


def _dotted(path: _Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _line(origins: _Origins, path: _Path, text: str) -> str:
    return ": ".join(filter(None, [_origin(origins, path).file, _dotted(path), text]))


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_name(key: str, name: Any, names: Iterable[str], where: str = "config") -> None:
    """Raises InputError that lists `names` where `name`, the value of a config key, is none of them."""
    names = sorted(set(names))
    if name not in names:
        near = _nearest(str(name), names)
        hint = f"did you mean {near!r}? " if near else ""
        raise InputError(f"{where}: {key}: unknown {name!r}; {hint}known are {', '.join(names)}")


def _nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(names), 1, cutoff)), None)


# ---------------------------------------------------------------------------------------------------------------------
# Reading files
# ---------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 and OpenOOD's overrides do, and says where a bad value is."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):  # from int(), date(), ...
            raise _flaw(f"not a valid {node.tag.rpartition(':')[2]}: {_show(node.value)}", node) from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _flaw("a whole number of more than 64 bits", node)
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _flaw(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parse(text: str) -> Any:
    """YAML text as Python values; repeated keys, keys that are no text, and alias loops raise yaml.YAMLError too."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, set(), set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_nodes(node: yaml.Node, above: set[int], done: set[int]) -> None:
    if id(node) in above:
        raise _flaw("an alias to the very value that it stands in", node)
    if id(node) in done:
        return
    if isinstance(node, yaml.ScalarNode):
        if re.search("[\ud800-\udfff]", node.value):
            raise _flaw("an escape that stands for no character", node)
        return
    done.add(id(node))
    first: dict[str, int] = {}
    for child in node.value:
        pair = child if isinstance(node, yaml.MappingNode) else (child,)
        for item in pair:
            _check_nodes(item, above | {id(node)}, done)
        if node.tag != "tag:yaml.org,2002:map":
            continue
        key = pair[0]
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            what = _show(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _flaw(f"expected text as a key, got {what}; put it in quotes", key)
        line = key.start_mark.line + 1
        if key.value in first:
            raise _flaw(f"the key {key.value!r} is given twice, first on line {first[key.value]}", key)
        first[key.value] = line


def _reason(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line, column and words of what YAML found wrong."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position].split("\n")
        return len(before), len(before[-1]) + 1, f"the character #x{error.character:04x} is not allowed"
    mark = error.problem_mark
    words = ": ".join(filter(None, [error.context, error.problem]))
    if "'@'" in words:
        words += "; put a reference in quotes, '@{key}'"
    return mark.line + 1, mark.column + 1, words


def _read(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    try:
        data = _parse(text)
    except yaml.YAMLError as error:
        line, column, words = _reason(error, text)
        raise InputError(f"{file}:{line}:{column}: {words}") from None
    except RecursionError:
        raise InputError(f"{file}: nested too deeply") from None
    if not isinstance(data, dict):
        got = "an empty file" if data is None else _show(data)
        raise InputError(f"{file}: expected a mapping of settings at the top level, got {got}")
    return data


def shipped_configs() -> Path:
    """The folder of the configs that come with the package."""
    installed = Path(__file__).parent / "configs" / "openood"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs" / "openood"


def _find(name: str, folder: str, asked_by: str) -> str:
    """The path of a config given relative to a folder, or else to the shipped configs."""
    local, shipped = os.path.join(folder, name), shipped_configs() / name
    for path in (local, str(shipped)):
        if os.path.isdir(path):
            raise InputError(f"{asked_by}{name}: expected a file, got a folder")
        if os.path.exists(path):
            return path
    parent, shipped_folder = os.path.dirname(local) or ".", shipped_configs()
    beside = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    known = [os.path.join(os.path.dirname(name), file) for file in beside if file.endswith((".yml", ".yaml"))]
    known += sorted(path.relative_to(shipped_folder).as_posix() for path in shipped_folder.rglob("*.y*ml"))
    word = _nearest(os.path.basename(name), map(os.path.basename, known), 0.75)
    near = _nearest(name, [path for path in known if os.path.basename(path) == word], 0) or _nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    raise InputError(f"{asked_by}{name}: no such file, nor among the shipped configs{hint}")


def _layers(
    name: str, merged: set[str], folder: str = "", trail: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file with everything that it includes and that is not among the `merged` files yet, in the order of merging."""
    file = _find(name, folder, f"{trail[-1]}: include: " if trail else "")
    path = os.path.realpath(file)
    if trail and path in merged:
        return
    if any(path == os.path.realpath(other) for other in trail):
        raise InputError(f"{trail[-1]}: include: {name} leads back to itself ({' -> '.join([*trail, file])})")
    data = _read(file)
    includes = data.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(item, str) and item.strip() for item in includes):
        raise InputError(f"{file}: include: expected a list of files, got {_show(includes)}")
    for item in includes:
        yield from _layers(item, merged, os.path.dirname(file), (*trail, file))
    merged.add(path)
    yield file, data


# ---------------------------------------------------------------------------------------------------------------------
# Merging, overrides, references
# ---------------------------------------------------------------------------------------------------------------------

_LABELS = ("benchmark", "methods")  # its keys are labels such as "sigma 0.07", so a dot in them is just a dot


def _split(key: str, file: str) -> tuple[str, ...]:
    parts = tuple(key.split("."))
    if not all(parts):
        raise InputError(f"{file}: expected names separated by single dots as a key, got {key!r}")
    return parts


def _assign(config: Config, origins: _Origins, path: _Path, value: Any, file: str) -> None:
    """Lay a value over the config: mappings key by key, everything else (an empty mapping too) as a whole."""
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            below = (key,) if path == _LABELS else _split(key, file)
            _assign(config, origins, (*path, *below), item, file)
        return
    section = config
    for end, part in enumerate(path[:-1], 1):
        if not isinstance(section.get(part), Config):
            section[part] = Config()
        origins.pop(path[:end], None)  # an empty section, or something else, that is now filled key by key
        section = section[part]
    if isinstance(section.get(path[-1]), Config):
        for key in [key for key in origins if key[: len(path)] == path]:
            del origins[key]
    section[path[-1]] = value
    origins.pop(path, None)  # so that the newest is always the last
    newest = next(reversed(origins.values()), _UNKNOWN)
    origins[path] = _Origin(file, newest.order + 1)


def quoted(text: str) -> str:
    """A text as the value of an override, in quotes only where YAML would read it as something else."""
    try:
        alike = _parse(text) == text and not text.startswith("-")
    except yaml.YAMLError:
        alike = False
    return text if alike else json.dumps(text)


def _override_pairs(tokens: Iterable[str]) -> Iterator[tuple[str, Any]]:
    tokens = list(tokens)
    while tokens:
        token = tokens.pop(0)
        if not re.match(r"--[^-=]", token):
            raise InputError(f"{_COMMAND_LINE}: expected --key.sub value, got {token!r}")
        key, equals, text = token[2:].partition("=")
        if not equals and tokens and not tokens[0].startswith("--"):
            text = tokens.pop(0)
        if not text and key in _SWITCHES:
            text = "true"
        if not text:
            raise InputError(f"{_COMMAND_LINE}: {key}: no value; write null for none and '\"\"' for empty text")
        try:
            yield key, _parse(text)
        except yaml.YAMLError as error:
            words = _reason(error, text)[2]
            raise InputError(f"{_COMMAND_LINE}: {key}: expected a YAML value, got {_show(text)} ({words})") from None


def _override(config: Config, origins: _Origins, tokens: Iterable[str]) -> None:
    # those two decide which keys exist
    pairs = sorted(_override_pairs(tokens), key=lambda pair: pair[0] not in ("trainer.name", "network.name"))
    for key, value in pairs:
        path = _split(key, _COMMAND_LINE)
        ours = dict(_schema_keys(config))
        free = any(key.startswith(f"{name}.") for name, is_free in ours.items() if is_free)
        if _lookup(config, path, _MISSING) is _MISSING and key not in ours and not free:
            known = [*_keys(config), *ours]
            by_end: dict[str, str] = {}
            for name in known:
                by_end.setdefault(name.rpartition(".")[2], name)
            near = _nearest(key, known) or by_end.get(_nearest(path[-1], by_end, 0.75))
            hint = f"; did you mean '--{near}'?" if near else "; an override must name a key of the configs"
            raise InputError(f"{_COMMAND_LINE}: {key}: unknown key{hint}")
        _assign(config, origins, path, value, _COMMAND_LINE)


def _keys(config: Config, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, Config):
            yield from _keys(value, f"{prefix}{key}.")


class _References:
    """Puts values in the place of `'@{key}'`."""

    WHOLE = re.compile(r"@\{([^{}]+)\}")
    QUOTED = re.compile(r"'@\{([^{}]+)\}'")

    def __init__(self, config: Config, origins: _Origins) -> None:
        self.config, self.origins = config, origins

    def resolve(self, value: Any, path: _Path = (), trail: tuple[str, ...] = ()) -> Any:
        """The value of the key `path` without references; `trail` holds the references on the way here."""
        if isinstance(value, dict):
            return Config({key: self.resolve(item, (*path, key), trail) for key, item in value.items()})
        if isinstance(value, list):
            return [self.resolve(item, path, trail) for item in value]
        if not isinstance(value, str):
            return value
        whole = self.WHOLE.fullmatch(value)
        if whole:
            return self.fetch(whole[1], path, trail)
        bare = self.WHOLE.search(self.QUOTED.sub("", value))
        if bare:
            self.fail(path, f"expected quotes around a reference inside text, '{bare[0]}', got {_show(value)}")
        return self.QUOTED.sub(lambda match: self.text(match[1], path, trail), value)

    def text(self, key: str, path: _Path, trail: tuple[str, ...]) -> str:
        value = self.fetch(key, path, trail)
        if isinstance(value, dict):
            self.fail(path, f"expected a reference to a single value inside text, got the section '@{{{key}}}'")
        return str(value)

    def fetch(self, key: str, path: _Path, trail: tuple[str, ...]) -> Any:
        if key in trail:
            self.fail(path, f"the reference '@{{{key}}}' leads back to itself ({' -> '.join([*trail, key])})")
        value: Any = self.config
        parts = tuple(key.split("."))
        for end, part in enumerate(parts):
            if isinstance(value, str):  # a section that is itself a reference
                value = self.resolve(value, parts[:end], (*trail, key))
            if not isinstance(value, dict) or part not in value:
                near = _nearest(key, _keys(self.config))
                hint = f"; did you mean '@{{{near}}}'?" if near else ""
                self.fail(path, f"the reference '@{{{key}}}' names no key{hint}")
            value = value[part]
        return self.resolve(value, parts, (*trail, key))

    def fail(self, path: _Path, text: str) -> None:
        raise InputError(_line(self.origins, path, text))


# ---------------------------------------------------------------------------------------------------------------------
# Validation
# ---------------------------------------------------------------------------------------------------------------------


_HOSTS_SECTIONS = ("dataset", "ood_dataset", "network", "preprocessor", "pipeline", "trainer", "optimizer")
_HOSTS_SECTIONS += ("evaluator", "postprocessor")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model among the alternatives of a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _trainer_model(config: dict) -> type[BaseModel] | None:
    name = _lookup(config, ("trainer", "name"))
    return TRAINER_SETTINGS.get(name) if isinstance(name, str) else None


def _sections(config: dict) -> dict[str, type[BaseModel]]:
    """Our top-level sections; OpenOOD's trainers and networks keep their own settings."""
    network = GENERATIVE_SETTINGS.get(str(_lookup(config, ("network", "name"))))
    models = {"dream": DreamSettings, "benchmark": BenchmarkSettings, "trainer": _trainer_model(config)}
    return {name: model for name, model in {**models, "network": network}.items() if model}


def _schema_keys(config: dict) -> Iterator[tuple[str, bool]]:
    """Every dotted key of our sections, and whether any key may stand below it."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
        for name, field in model.model_fields.items():
            yield prefix + name, get_origin(field.annotation) is dict
            inner = _model_in(field.annotation)
            if inner:
                yield from walk(inner, f"{prefix}{name}.")

    yield from walk(RunSettings, "")
    yield "trainer.name", False
    yield "network.checkpoint", False  # what is evaluated is said on the command line
    for name, model in _sections(config).items():
        yield name, False
        yield from walk(model, f"{name}.")


def _phrase(kind: Any, notes: Iterable[Any] = ()) -> str:
    """A type with its limits in plain words."""
    notes = [inner for note in notes for inner in getattr(note, "metadata", [note])]  # a Field holds notes of its own
    for note in notes:
        if isinstance(note, _Expects):
            return note.text
    form, args = get_origin(kind), get_args(kind)
    if form is Annotated:
        return _phrase(args[0], [*args[1:], *notes])
    if form in (Union, types.UnionType):
        return " or ".join(_phrase(arg, notes) for arg in args)
    if form is Literal:
        names = [repr(arg) for arg in args]
        return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    if form is list:
        return f"a list, each entry {_phrase(args[0])}"
    if kind not in (int, float):
        return {str: "text", type(None): "null"}.get(kind, "a mapping of settings")
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}
    limits = [
        f"{sign} {getattr(note, name):g}" for note in notes for name, sign in signs.items() if hasattr(note, name)
    ]
    return " ".join(filter(None, ["an integer" if kind is int else "a number", " and ".join(limits)]))


def _place(model: type[BaseModel], loc: _Path) -> tuple[_Path, str, Any]:
    """The key that pydantic's location is about, the words for what is expected there, and its type."""
    path, expected, kind = (), "a mapping of settings", model
    for part in loc:
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        inner = _model_in(kind)
        if inner and part in inner.model_fields:
            field = inner.model_fields[part]
            kind, expected = field.annotation, _phrase(field.annotation, field.metadata)
        elif get_origin(kind) is list and isinstance(part, int) or get_origin(kind) is dict:
            kind = get_args(kind)[-1]
            expected = _phrase(kind)
        else:  # not a key but the name that pydantic gives to an alternative of a union
            kind = next((arg for arg in get_args(kind) if get_origin(arg) is list), None)
            continue
        path += (part,)
    return path, expected, kind


def _check(model: type[BaseModel], data: Any, base: _Path, origins: _Origins) -> list[tuple[int, str]]:
    """What is wrong with a section: pairs of (order in the files, line)."""
    try:
        model.model_validate(data)
        return []
    except ValidationError as error:
        found = error.errors(include_url=False)
    problems: dict[_Path, str] = {}
    for item in found:
        loc = item["loc"]
        if item["type"] == "rule":
            keys, text = item["ctx"]["keys"], item["ctx"]["text"]
            path = (*loc, next((key for key in keys if key in _lookup(data, loc)), keys[0])) if keys else loc
        elif item["type"] in ("extra_forbidden", "invalid_key"):
            path, (_, _, kind) = loc, _place(model, loc[:-1])
            names = list(_model_in(kind).model_fields)
            near = _nearest(str(loc[-1]), names)
            listing = f"the keys of {_dotted(base + loc[:-1])} are {', '.join(names)}"
            text = "unknown key; " + (f"did you mean {near!r}?" if near else listing)
        else:
            path, expected, _ = _place(model, loc)
            missing = item["type"] == "missing"
            text = (
                f"missing; expected {expected}" if missing else f"expected {expected}, got {_show(_lookup(data, path))}"
            )
        problems.setdefault(path, text)
    for path in list(problems):  # a list with a bad entry is no text either, but nobody meant it to be
        if any(other[: len(path)] == path for other in problems if other != path):
            del problems[path]
    return [(_origin(origins, base + path).order, _line(origins, base + path, text)) for path, text in problems.items()]


def _raise_first(problems: list[tuple[int, str]]) -> None:
    if problems:
        first = min(problems, key=lambda problem: problem[0])[1]
        raise InputError(first + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


def _check_hosts_sections(config: Config, origins: _Origins) -> None:
    """Raises InputError for a section of OpenOOD's that is no mapping, which its readers and ours take for granted."""
    problems = []
    for name in _HOSTS_SECTIONS:
        value = config.get(name)
        if not (value is None or isinstance(value, dict) or isinstance(value, str) and "@{" in value):
            text = f"expected a mapping of settings, got {_show(value)}"
            problems.append((_origin(origins, (name,)).order, _line(origins, (name,), text)))
    _raise_first(problems)


def _run_keys(config: dict) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in RunSettings.model_fields}


def _validate(config: Config, origins: _Origins) -> None:
    problems = _check(RunSettings, _run_keys(config), (), origins)
    for name, model in _sections(config).items():
        if name in config:
            problems += _check(model, plain(config[name]), (name,), origins)
    ours = [*RunSettings.model_fields, "dream", "trainer", "benchmark", "include"]
    for key in config:
        # at 0.8 a typo of ours is caught, and none of OpenOOD's own keys (trainer_name, ...) is taken for one
        near = None if key in ours else _nearest(key.lower(), ours, 0.8)
        if near:
            path = (key,)
            problems.append(
                (_origin(origins, path).order, _line(origins, path, f"unknown key; did you mean {near!r}?"))
            )
    _raise_first(problems)


def _join_output_dir(config: Config) -> None:
    """Append exp_name to output_dir, as OpenOOD does once all else is settled."""
    if config.exp_name is None:
        return
    for key, value in (("exp_name", config.exp_name), ("output_dir", config.output_dir)):
        if value is None or isinstance(value, (dict, list)):
            origins = _origins(config)
            file = _origin(origins, (key,)).file or _origin(origins, ("exp_name",)).file
            raise InputError(f"{file}: {key}: expected text, since exp_name is set, got {_show(value)}")
    config.output_dir = os.path.join(str(config.output_dir), str(config.exp_name))


# ---------------------------------------------------------------------------------------------------------------------
# What others call
# ---------------------------------------------------------------------------------------------------------------------


def load_config(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Config:
    """The validated Config of files merged left to right, each after its includes, and of `--key.sub value` tokens.

    An include that was merged before is not merged again, so that what came since then stays. A file that is not
    there is looked up in `shipped_configs()`. `output_dir` ends in `exp_name`, as in OpenOOD.
    Raises InputError for the first mistake in the order of the files.
    """
    config, origins, merged = Config(), {}, set()
    try:
        for name in files:
            for file, data in _layers(os.fspath(name), merged):
                _assign(config, origins, (), data, file)
        _override(config, origins, overrides)
        _check_hosts_sections(config, origins)
        config = _References(config, origins).resolve(config)
        _check_hosts_sections(config, origins)  # what was a reference is a value now
        _validate(config, origins)
    except RecursionError:
        raise InputError("the configs are nested too deeply") from None
    object.__setattr__(config, "_origins", origins)
    _join_output_dir(config)
    return config


def settings(config: dict, section: str) -> Any:
    """One of our sections ("dream.space", "trainer", ...; "" is the top-level keys) as its model, defaults filled in.

    Takes any dict, OpenOOD's own Config too. Raises InputError for what is missing, unknown or impossible there,
    also for a trainer.name that is not in TRAINER_SETTINGS.
    """
    origins = _origins(config)
    path = tuple(section.split(".")) if section else ()
    if path == ("trainer",) and not _trainer_model(config):
        names, given = ", ".join(TRAINER_SETTINGS), _show(_lookup(config, ("trainer", "name")))
        raise InputError(_line(origins, ("trainer", "name"), f"expected one of {names}, got {given}"))
    model: Any = _sections(config)[path[0]] if path else RunSettings
    for part in path[1:]:
        model = _model_in(model.model_fields[part].annotation)
    data = plain(_lookup(config, path, {})) if path else _run_keys(config)
    return validated(config, section, model, data)


def validated(config: dict, section: str, model: Any, values: Any) -> Any:
    """`values`, which stand in a section of the config, as that model; InputError names file and key of a bad one."""
    path = tuple(section.split(".")) if section else ()
    _raise_first(_check(model, values, path, _origins(config)))
    return model.model_validate(values)
