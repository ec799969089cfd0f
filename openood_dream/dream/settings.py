"""Settings of the imagination: the section `dream`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from pydantic.fields import FieldInfo

from openood_dream.config.schema import Expects, Name, Section, Seed, each_once, not_more, rule
from openood_dream.dream.guide_settings import GuideSettings
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.quality_settings import FilterSettings, QualitySettings
from openood_dream.errors import check_name, nearest

Eights = Annotated[
    list[Annotated[int, Field(ge=8, multiple_of=8)]], Field(min_length=1), Expects("a list of multiples of 8")
]
Sixteens = Annotated[
    list[Annotated[int, Field(ge=16, multiple_of=16)]], Field(min_length=1), Expects("a list of multiples of 16")
]


class GeneratorTraining(Section):
    """`dream.generator: {train: small}`: a small Stable-Diffusion-format pipeline trained on the ID images."""

    section = "dream.generator"

    train: Literal["small"] = Field(description="which architecture to train")
    seed: Seed = Field(0, description="seed of weights, batches and noise")
    size: int | None = Field(None, ge=8, description="pixels a side of its images; null: the classifier's")
    vae_channels: Eights = Field(
        [32, 32, 64], description="channels of the VAE's levels; each level after the first halves the image"
    )
    latent_channels: int = Field(8, ge=1, description="channels of the latents")
    unet_channels: Sixteens = Field(
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
    text_dim: int = Field(64, ge=4, multiple_of=4, description="width m of the token embeddings, shared by four heads")
    anchor_norm: float = Field(0.4, gt=0, description="norm of the class anchors")
    checkpoint_every: int = Field(500, ge=1, description="steps between two savings of the training's state")
    samples_every: int | None = Field(
        None, ge=1, description="steps between two grids of samples; null: one grid, at the end"
    )

    @model_validator(mode="after")
    def _shares(self) -> GeneratorTraining:
        own, empty = self.embedding_fraction, self.empty_fraction
        text = f"expected embedding_fraction + empty_fraction <= 1, got {own:g} + {empty:g}"
        rule(own + empty <= 1 + 1e-9, text, "embedding_fraction", "empty_fraction")
        return self


class SpaceSettings(Section):
    """`dream.space`: phase 1, the text-conditioned latent space (DREAM-OOD Eq. 2)."""

    section = "dream.space"

    method: Literal["encoder", "inversion"] = Field(
        "encoder",
        description="what embeds the training images that outliers are sampled around: the image encoder, or inversion by the"
        " generator (NCIS); the encoder judges images, and a generator learns from it, either way",
    )
    network: Name = Field("timm:resnet34", description="image encoder")
    network_args: dict[str, Any] = Field({}, description="further arguments of the image encoder")
    epochs: int = Field(200, ge=1, description="training epochs")
    batch_size: int = Field(256, ge=1, description="images per step")
    lr: float = Field(0.1, gt=0, description="learning rate at the start of the cosine schedule")
    momentum: float = Field(0.9, gt=0, lt=1, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    temperature: float = Field(0.1, gt=0, description="temperature t of the cosine softmax")
    per_class: int = Field(500, ge=1, description="embeddings kept per class")
    seed: Seed = Field(0, description="seed of weights and batches")
    inversion: InversionSettings = Field(default_factory=InversionSettings, description="method inversion")

    @property
    def encoding(self) -> dict[str, Any]:
        """The settings that decide about the encoder, for what names its artifact."""
        return self.model_dump(exclude={"method", "inversion"})


class OutlierSettings(Section):
    """`dream.outliers`: phase 2a, embeddings of outliers or inliers; each sampler has keys of its own besides."""

    section = "dream.outliers"

    method: Name = Field(
        "knn",
        description="the sampler: knn, inlier, boundary, ncis; plain: none, the class's own anchor stands for them",
    )
    k: int = Field(300, ge=1, description="which nearest neighbour measures the distance")
    neighbours: Literal["class", "all"] = Field(
        "class", description="whose embeddings count as neighbours: the class's own, or all"
    )
    seed: Seed = Field(0, description="seed of the draws")

    @property
    def label(self) -> str:
        """What names of folders say of the sampler."""
        return self.method

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        near = nearest(name, SAMPLER_SETTINGS)
        hint = f"did you mean {near!r}? " if near else ""
        rule(name in SAMPLER_SETTINGS, f"unknown {name!r}; {hint}known are {', '.join(sorted(SAMPLER_SETTINGS))}")
        return name

    @classmethod
    def known_fields(cls) -> dict[str, FieldInfo]:
        """The keys of all samplers."""
        fields = dict(cls.model_fields)
        for model in SAMPLER_SETTINGS.values():
            fields |= model.model_fields
        return fields


class KNNSettings(OutlierSettings):
    """`dream.outliers` with method knn or inlier: draws around embeddings far from, or near to, the others (DREAM-OOD, Sec. 3.2)."""

    method: Literal["knn", "inlier"] = Field("knn", description="the sampler")
    sigma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="standard deviation of the Gaussian draws; auto: found for each class, by multiple"
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

    @property
    def label(self) -> str:
        return f"{self.method}-sigma{self.sigma if self.sigma == 'auto' else format(self.sigma, 'g')}"

    @model_validator(mode="after")
    def _counts(self) -> KNNSettings:
        return not_more(self, ("keep", "n_draws"), ("n_boundary", "select"))


class BoundarySettings(OutlierSettings):
    """`dream.outliers` with method boundary: embeddings walked across the boundary of their class (BOOD, ICML 2025)."""

    method: Literal["boundary"] = Field("boundary", description="the sampler")
    step_size: float = Field(0.03, gt=0, description="boundary: length of a step along the sign of the gradient")
    extra_steps: int = Field(2, ge=0, description="boundary: steps c beyond the crossing")
    max_steps: int = Field(100, ge=1, description="boundary: steps after which an embedding is given up")
    fraction: float = Field(
        0.05, gt=0, le=1, description="boundary: share of each class that is used, the one that crosses soonest"
    )

    @property
    def label(self) -> str:
        return f"{self.method}-step{self.step_size:g}"


class NCISSettings(OutlierSettings):
    """`dream.outliers` with method ncis: draws that break what a class's embeddings have in common (NCIS, 2024)."""

    method: Literal["ncis"] = Field("ncis", description="the sampler")
    pairs: int = Field(4, ge=1, description="ncis: pairs of a rotation and a coupling in the volume-preserving network")
    epochs: int = Field(200, ge=1, description="ncis: epochs of its training")
    batch_size: int = Field(64, ge=1, description="ncis: embeddings in a step of it")
    lr: float = Field(1e-4, gt=0, description="ncis: learning rate of it at the start; it falls to a tenth")
    invariant_share: float = Field(
        0.05, gt=0, lt=1, description="ncis: share of a class's variance that its invariants may have, by PCA"
    )
    gaussian_draws: int = Field(3330, ge=1, description="ncis: draws of a round")
    least_likely: int = Field(10, ge=1, description="ncis: draws of a round that are kept")
    repetitions: int = Field(10, ge=1, description="ncis: rounds")

    @model_validator(mode="after")
    def _counts(self) -> NCISSettings:
        return not_more(self, ("least_likely", "gaussian_draws"))


class PlainSettings(OutlierSettings):
    """`dream.outliers` with method plain: the class's own anchor in the place of outliers."""

    method: Literal["plain"] = Field("plain", description="the sampler")


# the settings of each sampler by its name, for whoever does without the samplers, which need torch
SAMPLER_SETTINGS: dict[str, type[OutlierSettings]] = {
    "knn": KNNSettings,
    "inlier": KNNSettings,
    "boundary": BoundarySettings,
    "ncis": NCISSettings,
    "plain": PlainSettings,
}


def sampler_settings(data: Any) -> Any:
    """The section `dream.outliers` as the settings of the sampler that it names; pydantic reports what is wrong in it.

    Keys of other samplers, which a config underneath may have set, are checked as theirs and left out.
    """
    if not isinstance(data, dict):
        return data
    model = SAMPLER_SETTINGS.get(str(data.get("method", "knn")), OutlierSettings)
    for other in dict.fromkeys(SAMPLER_SETTINGS.values()):
        foreign = {key: data[key] for key in data if key in other.model_fields.keys() - model.model_fields.keys()}
        if foreign:
            other.model_validate(foreign)
    others = OutlierSettings.known_fields().keys() - model.model_fields.keys()
    return model.model_validate({key: value for key, value in data.items() if key not in others})


def _one_place(text: Any) -> Any:
    if isinstance(text, str) and re.findall(r"\{\}|[{}]", text) != ["{}"]:
        raise ValueError("not exactly one {}")
    return text


class SynthesisSettings(Section):
    """`dream.synthesis`: phase 2b, embeddings to images with the diffusion model."""

    section = "dream.synthesis"

    per_class: int = Field(1000, ge=1, description="images per class")
    prompt: Annotated[
        str,
        BeforeValidator(_one_place),
        Expects("text with {} once, where the class name goes, and no other braces"),
    ] = Field("A high-quality image of the {}", description="prompt; {} is the class name")
    prompts: dict[
        str, Annotated[str, BeforeValidator(_one_place), Expects("text with {} once, and no other braces")]
    ] = Field({}, description="prompts of single classes, by their names, in the place of `prompt`")
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
        "auto",
        description="number format of the pipeline; auto: bfloat16 on a GPU that computes in it, float16 on others, float32 on a"
        " CPU; with float16 the autoencoder computes in float32",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="what waits in the CPU's memory until a CUDA GPU needs it: model, the parts that do not compute; sequential,"
        " every layer, which is far slower",
    )
    vae_tiling: bool = Field(
        False,
        description="decode images larger than the autoencoder's own in tiles: less memory, other pixels at the seams",
    )
    compile: bool = Field(False, description="compile the UNet with torch.compile, which pays off for large sets")
    residual: bool = Field(
        False,
        description="whether what the autoencoder loses of a random ID training image is added to each image, so that"
        " outliers cannot be told from ID by lost detail",
    )
    init: Literal["noise", "id"] = Field(
        "noise",
        description="what drawing starts from: noise, or a random ID training image of the class, noised to `strength`: layout"
        " and texture stay real",
    )
    strength: float = Field(0.6, gt=0, le=1, description="init id: share of the noise schedule, and of the steps")
    pair: Annotated[bool | Literal["autoencoder"], Expects("true, false or autoencoder")] = Field(
        False,
        description="whether each outlier comes with an inlier, for `trainer.pairs`. true (init id): its start drawn under its own"
        " embedding, from the same noise, so that meaning alone is different. autoencoder: an ID training image of the class as"
        " the autoencoder gives it back",
    )
    guide: GuideSettings = Field(
        default_factory=GuideSettings,
        description="guidance away from ID by the judge of `dream.quality`; none where both weights are 0",
    )
    call: dict[str, Any] = Field(
        {}, description="further arguments of the pipeline's own call, such as true_cfg_scale or max_sequence_length"
    )
    seed: Seed = Field(0, description="seed of the noise")
    shard_size: int = Field(256, ge=1, description="images per shard, the unit of resuming and distributing")

    # an image is the same however it is drawn; shard_size and per_class stay, since shards are numbered by them
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"batch_size", "offload", "compile"})

    def deciding(self, *unused: str) -> dict[str, Any]:
        """The settings that decide about images, for what names a stage's artifact.

        Args:
            unused: keys that have no say in this stage.

        Returns:
            Plain values by key.
        """
        return self.model_dump(exclude={*self.WITHOUT_EFFECT, "guide", *unused})  # the guide has an identity of its own

    def templates(self, names: Sequence[str]) -> dict[str, str]:
        """The prompt of each class, with {} where its name goes, in label order.

        Args:
            names: the class names.

        Raises:
            InputError: `prompts` has another name.
        """
        for name in self.prompts:
            check_name(self.where("prompts"), name, names)
        return {name: self.prompts.get(name, self.prompt) for name in names}

    @property
    def all_prompts(self) -> str:
        """All words that prompts have besides class names."""
        return " ".join([self.prompt, *self.prompts.values()])

    @model_validator(mode="after")
    def _starts(self) -> SynthesisSettings:
        alone = "true needs a start: set init: id, or pair: autoencoder"
        rule(self.init == "id" or self.pair is not True, alone, "pair", "init")
        few = f"expected steps * strength of at least 1, got {self.steps} * {self.strength:g}"
        rule(self.init == "noise" or self.steps * self.strength >= 1, few, "strength", "steps")
        drawn = self.steps if self.init == "noise" else int(self.steps * self.strength)
        guided = round(self.guide.end * drawn) - round(self.guide.begin * drawn)
        none = f"no step of {drawn} is between begin ({self.guide.begin:g}) and end ({self.guide.end:g}); widen them"
        rule(guided > 0 or not self.guide.active, none, "guide.begin", "guide.end")
        return self


def _training(generator: Any) -> Any:
    return GeneratorTraining.model_validate(generator) if isinstance(generator, dict) else generator


def _pair(lora: Any) -> Any:
    return tuple(lora) if isinstance(lora, list) else lora


class DreamSettings(Section):
    """`dream`: everything of the imagination, shared by its stages."""

    section = "dream"

    class_names: Annotated[Name | list[Name], Expects("a file or a list of names")] = Field(
        description="the ID classes in label order: a text file of one name a line, or a list"
    )
    generator: Annotated[
        Name | GeneratorTraining,
        BeforeValidator(_training),
        Expects("a model's hub id, a local folder or {train: small}"),
    ] = Field(description="the diffusion model")
    revision: Name | None = Field(None, description="hub revision of the generator")
    variant: Name | None = Field(
        None, description="variant of the generator's weights, such as fp16 where a folder has no others"
    )
    layout: Name | None = Field(
        None,
        description="what a generator of one file (.safetensors or .ckpt) consists of: the folder or hub id of a pipeline"
        " of its kind, of which only configs and tokenizers are read",
    )
    lora: Annotated[
        tuple[Name, float] | None, BeforeValidator(_pair), Expects("[file, folder or hub id, a number], or null")
    ] = Field(
        None,
        description="LoRA weights that are merged into the generator, and how strongly: [file, folder or hub id, 1.0]",
    )
    words: list[Name] = Field(
        [],
        description="textual inversions, .safetensors files: words that the generator is taught, for the names of classes",
    )
    space: SpaceSettings = Field(default_factory=SpaceSettings, description="phase 1")
    outliers: Annotated[SerializeAsAny[OutlierSettings], BeforeValidator(sampler_settings)] = Field(
        default_factory=KNNSettings, description="phase 2a"
    )
    synthesis: SynthesisSettings = Field(default_factory=SynthesisSettings, description="phase 2b")
    quality: QualitySettings = Field(default_factory=QualitySettings, description="how the images are judged")
    filter: FilterSettings = Field(default_factory=FilterSettings, description="which images are dropped")
    cache_dir: Name = Field("results/dream", description="where the stages keep their artifacts")

    @field_validator("class_names")
    @classmethod
    def _distinct(cls, names: str | list[str]) -> str | list[str]:
        if isinstance(names, list):
            each_once(names)
        return names

    @model_validator(mode="after")
    def _given(self) -> DreamSettings:
        keys = [key for key in ("variant", "layout", "lora", "words") if getattr(self, key)]
        trained = isinstance(self.generator, GeneratorTraining)
        rule(not (trained and keys), "is of a generator that is given, and this one is trained; leave it out", *keys)
        return self
