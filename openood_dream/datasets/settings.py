"""Settings of the data: the sections `dataset`, `ood_dataset` and `preprocessor`, in OpenOOD's form."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from openood_dream.config.schema import HostSection, Name, rule

IMAGINED = "imagined"  # an imglist_pth that stands for the image set which the section dream describes

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class SplitSettings(HostSection):
    """A list of images: `dataset.train`, `ood_dataset.nearood.tin`, ..."""

    imglist_pth: Name = Field(
        description="image list, a line `path label` for each image; -1 is the label of OOD images"
    )
    data_dir: str = Field(description="folder that the paths of the list start from")
    batch_size: int | None = Field(None, ge=1, description="images per batch")

    def needs_batch_size(self) -> int:
        """Its batch size; InputError where there is none."""
        if self.batch_size is None:
            raise self.error("batch_size", "missing; expected an integer >= 1")
        return self.batch_size


class DatasetSettings(HostSection):
    """`dataset`: the in-distribution images, and how every image is prepared."""

    section = "dataset"

    name: Name = Field(description="name of the data set in file names and tables")
    num_classes: int = Field(ge=1, description="ID classes")
    pre_size: int = Field(ge=1, description="pixels of an image's shorter side after resizing")
    image_size: int = Field(ge=1, description="pixels a side after cropping, what networks see")
    interpolation: Interpolation = Field("bilinear", description="how images are resized")
    normalization_type: str | None = Field(None, description="whose channel means and deviations normalise images")
    num_workers: int = Field(0, ge=0, description="processes that decode images")
    make: Literal["digits", "frl_cifar10"] | None = Field(
        None, description="built-in benchmark that is written under data_root if it is not there"
    )
    train: SplitSettings | None = Field(None, description="ID training images")
    val: SplitSettings | None = Field(None, description="ID validation images")
    test: SplitSettings | None = Field(None, description="ID test images")
    oe: SplitSettings | None = Field(None, description="auxiliary images: outliers, or with dream_id inliers")

    def split(self, name: str) -> SplitSettings:
        """The split train, val, test or oe; InputError where the config lacks it."""
        found = getattr(self, name)
        if found is None:
            raise self.error(name, "missing; expected imglist_pth and data_dir")
        return found


class GroupSettings(HostSection):
    """A group of test sets: `ood_dataset.nearood`, ...; each name of `datasets` is a key with its image list."""

    EXTRA: ClassVar[Any] = SplitSettings
    __pydantic_extra__: dict[str, SplitSettings]

    datasets: list[Name] = Field(min_length=1, description="names of the sets")

    @model_validator(mode="after")
    def _all_there(self) -> GroupSettings:
        for name in self.datasets:
            rule(name in (self.model_extra or {}), "missing; expected imglist_pth and data_dir", name)
        return self

    @property
    def sets(self) -> dict[str, SplitSettings]:
        """The sets by name, in the order of `datasets`."""
        return {name: getattr(self, name) for name in self.datasets}


class OODDatasetSettings(HostSection):
    """`ood_dataset`: what is to be told from the ID images, and ID images under changed conditions (csid)."""

    section = "ood_dataset"

    batch_size: int | None = Field(None, ge=1, description="images per batch")
    num_workers: int = Field(0, ge=0, description="processes that decode images")
    val: SplitSettings | None = Field(None, description="OOD validation images, the only ones to choose settings by")
    nearood: GroupSettings | None = Field(None, description="near-OOD test sets")
    farood: GroupSettings | None = Field(None, description="far-OOD test sets")
    csid: GroupSettings | None = Field(None, description="covariate-shifted images of the ID classes")


class PreprocessorSettings(HostSection):
    """`preprocessor`: how training images are augmented."""

    section = "preprocessor"

    name: Name = Field("base", description="base, dream or randaugment; in OpenOOD also its own")
    horizontal_flip: bool = Field(True, description="whether training images are mirrored at random")
    random_crop: bool = Field(True, description="whether training images are shifted at random, by up to 4 pixels")
    n: int | None = Field(None, ge=1, description="randaugment: random changes of each image")
    m: int | None = Field(None, ge=1, le=30, description="randaugment: strength of the changes")

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

    num_epochs: int = Field(ge=1, description="training epochs")
    lr: float = Field(gt=0, description="learning rate at the start")
    momentum: float = Field(gt=0, description="Nesterov momentum; the first beta of Adam (frl)")
    weight_decay: float = Field(ge=0, description="weight decay")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")
