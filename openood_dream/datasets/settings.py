"""Settings of the data: the sections `dataset`, `ood_dataset` and `preprocessor`, in OpenOOD's form."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from openood_dream.config.schema import Expects, HostSection, Name, each_once, name_file, rule
from openood_dream.errors import nearest

IMAGINED = "imagined"  # an imglist_pth that stands for the image set which the section dream describes

# Channel means and deviations by OpenOOD's normalization_type; HALVES are names that mean 0.5 and 0.5
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "covid": ((0.4907,) * 3, (0.2697,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet200": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
HALVES = ("aircraft", "cars", "cub", "digits")

PREPROCESSORS = ("base", "cider", "dream", "randaugment")  # those that work without OpenOOD

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class SplitSettings(HostSection):
    """A list of images: `dataset.train`, `ood_dataset.nearood.tin`, ..."""

    HOST_KEYS = ("extra_data_pth", "extra_label_pth", "extra_percent", "orig_ratio", "interpolation")
    SILENT = ("dataset_class", "shuffle", "interpolation")

    imglist_pth: Name = Field(
        description="image list, a line `path label` for each image; -1 is the label of OOD images"
    )
    data_dir: str = Field(description="folder that the paths of the list start from")
    batch_size: int | None = Field(None, ge=1, description="images per batch")
    drop_last: bool = Field(False, description="whether training leaves out a last batch that is not full")

    @property
    def imagined(self) -> bool:
        """Whether it stands for the image set that the section `dream` describes."""
        return self.imglist_pth == IMAGINED

    def needs_batch_size(self) -> int:
        """Its batch size; InputError where there is none."""
        if self.batch_size is None:
            raise self.error("batch_size", "missing; expected an integer >= 1")
        return self.batch_size


Quality = Annotated[int, Field(ge=1, le=100)]


class AuxiliarySettings(SplitSettings):
    """`dataset.oe`: images that are to be told from ID images by what they show, and not by how they were stored."""

    interpolation: Interpolation | list[Interpolation] | None = Field(
        None,
        description="how its images are resized; of several ways each image has one, drawn at random once and for all"
        " epochs; null: dataset.interpolation",
    )
    jpeg: Annotated[Quality | list[Quality] | None, Expects("a quality from 1 to 100, [lowest, highest], or null")] = (
        Field(
            None,
            description="quality, or [lowest, highest], of a JPEG that each image goes through before it is resized, as ID"
            " images do that are stored so; null: none",
        )
    )

    @field_validator("interpolation")
    @classmethod
    def _ways_differ(cls, given: Any) -> Any:
        if isinstance(given, list):
            each_once(given)
        return given

    @field_validator("jpeg")
    @classmethod
    def _ends(cls, given: Any) -> Any:
        if isinstance(given, list):
            text = f"expected a quality from 1 to 100, or [lowest, highest], got {given}"
            rule(len(given) == 2 and given[0] <= given[1], text)
        return given

    @property
    def ways(self) -> tuple[Interpolation, ...]:
        """The ways of resizing that it names."""
        given = self.interpolation or []
        return tuple(given) if isinstance(given, list) else (given,)

    @property
    def qualities(self) -> tuple[int, int] | None:
        """The lowest and the highest quality of JPEG; None where there is none."""
        if self.jpeg is None:
            return None
        return (self.jpeg[0], self.jpeg[1]) if isinstance(self.jpeg, list) else (self.jpeg, self.jpeg)


class DatasetSettings(HostSection):
    """`dataset`: the in-distribution images, and how every image is prepared."""

    section = "dataset"
    HOST_KEYS = ("feat_root",)
    SILENT = ("num_gpus", "num_machines", "split_names")

    name: Name = Field(description="name of the data set in file names and tables")
    num_classes: int = Field(ge=1, description="ID classes")
    pre_size: int = Field(ge=1, description="pixels of an image's shorter side after resizing")
    image_size: int = Field(ge=1, description="pixels a side after cropping, what networks see")
    channels: Literal[1, 3] = Field(3, description="what classifiers see of an image; 3: colours, 1: its luma")
    interpolation: Interpolation = Field("bilinear", description="how images are resized")
    normalization_type: Annotated[
        str | None, Expects(f"one of {', '.join((*NORMALIZATION, *HALVES))}, dataset.name, or null")
    ] = Field(
        None, description="whose channel means and deviations normalise images; dataset.name: 0.5 in every channel"
    )
    num_workers: int = Field(0, ge=0, description="processes that decode images")
    make: Literal["digits", "frl_cifar10"] | None = Field(
        None, description="built-in benchmark that is written under data_root if it is not there"
    )
    train: SplitSettings | None = Field(None, description="ID training images")
    val: SplitSettings | None = Field(None, description="ID validation images")
    test: SplitSettings | None = Field(None, description="ID test images")
    oe: AuxiliarySettings | None = Field(None, description="auxiliary images: outliers, or with dream_id inliers")

    @model_validator(mode="after")
    def _checked(self) -> DatasetSettings:
        name_file(self.name, "a name", "name")
        known, own = (*NORMALIZATION, *HALVES), self.name
        text = f"expected one of {', '.join(known)}, or dataset.name for 0.5 in every channel, got {{}}"
        kind = self.normalization_type
        near = nearest(kind or "", known)
        hint = f"; did you mean {near!r}?" if near else ""
        rule(kind is None or kind in (*known, own), text.format(repr(kind)) + hint, "normalization_type")
        text = (
            f"expected at least image_size ({self.image_size}), got {self.pre_size}; smaller images get a black frame"
        )
        rule(self.pre_size >= self.image_size, text, "pre_size", "image_size")
        return self

    @property
    def shape(self) -> dict[str, int]:
        """What a classifier of these images must fit: their size, channels and classes."""
        return {"image_size": self.image_size, "num_classes": self.num_classes, "channels": self.channels}

    def split(self, name: str) -> SplitSettings:
        """The split train, val, test or oe; InputError where the config lacks it."""
        found = getattr(self, name)
        if found is None:
            raise self.error(name, "missing; expected imglist_pth and data_dir")
        return found


class GroupSettings(HostSection):
    """A group of test sets: `ood_dataset.nearood`, ...; each name of `datasets` is a key with its image list."""

    EXTRA: ClassVar[Any] = SplitSettings
    EXTRA_TEXT: ClassVar[str] = "image list of a set, by its name in `datasets`"
    __pydantic_extra__: dict[str, SplitSettings]

    datasets: list[Name] = Field(min_length=1, description="names of the sets")

    @model_validator(mode="after")
    def _all_there(self) -> GroupSettings:
        for name in self.datasets:
            name_file(name, "names", "datasets")
            rule(name in (self.model_extra or {}), "missing; expected imglist_pth and data_dir", name)
        return self

    def unknown(self) -> list[str]:
        return []  # each is a set; one that is not in `datasets` is left out of the test

    @property
    def sets(self) -> dict[str, SplitSettings]:
        """The sets by name, in the order of `datasets`."""
        return {name: getattr(self, name) for name in self.datasets}


def _group(value: Any) -> Any:
    """A key of one's own below `ood_dataset`: a group where it has the form of one."""
    return GroupSettings.model_validate(value) if isinstance(value, dict) and "datasets" in value else value


class OODDatasetSettings(HostSection):
    """`ood_dataset`: what is to be told from the ID images, and ID images under changed conditions (csid).

    Any other key that holds `datasets` is a group of test sets of its own.
    """

    section = "ood_dataset"
    SILENT = (
        *DatasetSettings.SILENT,
        "name",
        "num_classes",
        "image_size",
        "pre_size",
        "interpolation",
        "dataset_class",
        "shuffle",
    )
    EXTRA: ClassVar[Any] = GroupSettings
    EXTRA_TEXT: ClassVar[str] = "a further group of test sets, by a name of your own"
    __pydantic_extra__: dict[str, Annotated[Any, BeforeValidator(_group)]]

    batch_size: int | None = Field(None, ge=1, description="images per batch")
    num_workers: int = Field(0, ge=0, description="processes that decode images")
    val: SplitSettings | None = Field(None, description="OOD validation images, the only ones to choose settings by")
    nearood: GroupSettings | None = Field(None, description="near-OOD test sets")
    farood: GroupSettings | None = Field(None, description="far-OOD test sets")
    csid: GroupSettings | None = Field(None, description="covariate-shifted images of the ID classes")

    @model_validator(mode="after")
    def _names_differ(self) -> OODDatasetSettings:
        given = {**self.groups} | ({"csid": self.csid} if self.csid else {})
        seen = {name: name for name in ("near", "far", *given)}  # names of rows and columns in tables
        for group, of in given.items():
            rule(
                group not in ("near", "far"), f"expected another name, such as {group}ood, which tables call so", group
            )
            for name in of.datasets:
                text = f"{name!r} is named twice (also {seen.get(name)}); scores and tables need one name for each set"
                rule(name not in seen, text, f"{group}.datasets")
                seen[name] = f"in {group}"
        return self

    @property
    def groups(self) -> dict[str, GroupSettings]:
        """The groups of OOD test sets by name: nearood, farood, and those with names of their own."""
        named = {"nearood": self.nearood, "farood": self.farood, **(self.model_extra or {})}
        return {name: group for name, group in named.items() if isinstance(group, GroupSettings)}

    def unknown(self) -> list[str]:
        return [key for key in super().unknown() if key not in self.groups or self._misspelt(key)]

    def _misspelt(self, key: str) -> bool:
        """Whether a group's name looks like one of ours that is not there."""
        near = nearest(key, ("nearood", "farood", "csid"), 0.8)
        return near is not None and getattr(self, near) is None


class PreprocessorSettings(HostSection):
    """`preprocessor`: how training images are augmented."""

    section = "preprocessor"
    HOST_KEYS = (
        "alpha",
        "chain_depth",
        "length",
        "mixture_width",
        "n_holes",
        "severity",
        "all_ops",
        "preprocessor_args",
    )

    name: Name = Field(
        "base", description="base, dream, randaugment, or cider, two views of each image; in OpenOOD also its own"
    )
    horizontal_flip: bool | Literal["alternate"] = Field(
        True, description="whether training images are mirrored, at random or in every other epoch"
    )
    random_crop: bool = Field(
        True, description="whether training images are shifted at random, by up to `shift` pixels"
    )
    shift: int = Field(4, ge=1, description="pixels that random_crop shifts an image by, at most")
    border: Literal["black", "mirror"] = Field("black", description="what comes into sight beyond an image's border")
    n: int | None = Field(None, ge=1, description="randaugment: random changes of each image")
    m: int | None = Field(None, ge=1, le=30, description="randaugment: strength of the changes")

    @property
    def views(self) -> int:
        """How many views of each image a training batch has."""
        return 2 if self.name == "cider" else 1

    @property
    def randaugment(self) -> tuple[int, int] | None:
        """n and m of RandAugment, or None where the preprocessor is another; InputError where one is missing."""
        if self.name != "randaugment":
            return None
        if self.n is None or self.m is None:
            raise self.error("n" if self.n is None else "m", "missing; randaugment needs n and m, such as 1 and 14")
        return self.n, self.m


class OptimizerSettings(HostSection):
    """`optimizer`: how networks are trained."""

    section = "optimizer"
    HOST_KEYS = (
        "beta1",
        "betas",
        "cosine",
        "fc_lr_factor",
        "gamma",
        "gan_lr",
        "lr_decay_epochs",
        "lr_decay_rate",
        "mlp_decay_rate",
        "nesterov",
        "nesterov_fc",
        "steps",
        "warm",
        "warmup",
        "weight_decay_fc",
    )

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="the optimiser, torch's")
    schedule: Literal["cosine", "linear", "constant", "halving", "exponential", "triangle"] = Field(
        "cosine",
        description="how the learning rate moves: down to 1e-6 step by step, not at all, by half every 30 epochs, by 5 "
        "millionths a step, or up from a fifth within the first quarter and down to a fifteenth",
    )
    num_epochs: int = Field(ge=1, description="training epochs")
    lr: float = Field(gt=0, description="learning rate at the start")
    trunk_lr: float | None = Field(None, gt=0, description="the same of all but the last layer; null: lr")
    momentum: float = Field(gt=0, description="Nesterov momentum of sgd; the first beta of adam and adamw")
    weight_decay: float = Field(ge=0, description="weight decay")
    shift_factor: float = Field(1, gt=0, description="rate of biases of batch normalisation, in multiples of lr")
    label_smoothing: float = Field(0, ge=0, lt=1, description="share of a label that all classes share (cross-entropy)")
    warm_up: float = Field(0, ge=0, description="epochs in which the rate rises from 0 to where its schedule has it")
    second_beta: float = Field(0.999, gt=0, lt=1, description="second beta of adam and adamw")
    ema: float | None = Field(
        None, gt=0, lt=1, description="share of the running mean of weights that a step leaves; it is what is saved"
    )
    lookahead: bool = Field(False, description="whether weights are drawn, every 5 steps, to their running mean")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")

    def refuse_smoothing(self) -> None:
        """InputError where labels are to be smoothed, for trainers that have none."""
        if self.label_smoothing:
            raise self.error("label_smoothing", "the trainer has no labels to smooth; leave it out")
