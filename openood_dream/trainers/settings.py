"""Settings of each training method: the section `trainer`, chosen by its `name`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from openood_dream.config.schema import Name, Section, not_more


class TrainerSettings(Section):
    """What the settings of every trainer have in common."""

    section = "trainer"

    name: str = Field(description="the trainer")


class Base(TrainerSettings):
    """`trainer.name: base`: plain cross-entropy."""

    name: Literal["base"] = Field(description="the trainer")


Implementation = Annotated[
    Literal["openood", "ours"], Field(description="which one trains where the backend is OpenOOD; ours everywhere else")
]


class OE(TrainerSettings):
    """`trainer.name: oe`: Outlier Exposure."""

    name: Literal["oe"] = Field(description="the trainer")
    lambda_oe: float = Field(0.5, ge=0, description="weight of the outlier loss")
    implementation: Implementation = "openood"


class DreamOOD(TrainerSettings):
    """`trainer.name: dream_ood`: phase 3, energy regularisation with imagined outliers."""

    name: Literal["dream_ood"] = Field(description="the trainer")
    beta: float = Field(1.0, ge=0, description="weight of the outlier loss")
    loss: Literal["energy", "margin", "oe", "extra_class"] = Field(
        "energy",
        description="what is learned from outliers: lower energy, by a learned boundary or by the margins m_in and m_out, the "
        "uniform prediction, or a class of their own",
    )
    m_in: float = Field(23.0, description="loss margin: energy that ID images should have at least")
    m_out: float = Field(5.0, description="loss margin: energy that outliers should have at most")
    pairs: bool = Field(
        False,
        description="whether auxiliary images labelled with a class are ID images in all terms; imagined ones come in pairs",
    )

    @model_validator(mode="after")
    def _margins(self) -> DreamOOD:
        return not_more(self, ("m_out", "m_in"))


class DreamID(TrainerSettings):
    """`trainer.name: dream_id`: cross-entropy on ID images and imagined inliers."""

    name: Literal["dream_id"] = Field(description="the trainer")
    ratio: float | None = Field(
        None, gt=0, lt=1, description="share of each batch that inliers replace; null: a batch of them is added"
    )


class VOS(TrainerSettings):
    """`trainer.name: vos`: virtual outliers from class Gaussians."""

    name: Literal["vos"] = Field(description="the trainer")
    loss_weight: float = Field(0.1, ge=0, description="weight of the outlier loss")
    sample_number: int = Field(1000, ge=1, description="features kept of each class")
    sample_from: int = Field(10000, ge=1, description="draws from each class's Gaussian")
    select: int = Field(1, ge=1, description="least likely draws that are used of each class")
    start_epoch: int = Field(40, ge=0, description="first epoch with outliers")
    implementation: Implementation = "openood"

    @model_validator(mode="after")
    def _counts(self) -> VOS:
        return not_more(self, ("select", "sample_from"))


class NPOSArguments(Section):
    """`trainer.trainer_args` of npos, by OpenOOD's names."""

    section = "trainer.trainer_args"

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
        return not_more(self, ("ID_points_num", "sample_from"), ("pick_nums", "select"), *numbers)


class NPOS(TrainerSettings):
    """`trainer.name: npos`: CIDER's losses, and outliers around features that lie far from their class."""

    name: Literal["npos"] = Field(description="the trainer")
    trainer_args: NPOSArguments = Field(default_factory=NPOSArguments, description="the method's numbers")
    implementation: Implementation = "openood"


class TeacherSettings(Section):
    """`trainer.teacher`: the network that OAL's student learns from."""

    section = "trainer.teacher"

    network: Name = Field("timm:vit_base_patch16_224", description="the teacher")
    args: dict[str, Any] = Field(
        {}, description="further arguments of the teacher; pretrained: true fetches its weights"
    )
    checkpoint: Name | None = Field(
        None, description="its trained weights; null: trained first, by trainer base, and kept in dream.cache_dir"
    )
    epochs: int = Field(50, ge=1, description="epochs of its training")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="the optimiser of its training")
    lr: float = Field(1e-4, gt=0, description="learning rate of its training")
    trunk_lr: float | None = Field(None, gt=0, description="the same of all but its last layer; null: lr")


class OAL(TrainerSettings):
    """`trainer.name: oal`: distillation from a teacher, and little information shared with outliers."""

    name: Literal["oal"] = Field(description="the trainer")
    logits: float = Field(4.0, ge=0, description="weight of the distillation of logits")
    features: float = Field(8.0, ge=0, description="weight of the distillation of features")
    knn: float = Field(0.1, ge=0, description="weight of the information shared with k-NN outliers")
    latents: float = Field(0.2, ge=0, description="weight of the information shared with latents of outlier prompts")
    pairing: Literal["random", "class"] = Field(
        "random",
        description="which outliers go with an image: any, as published, with which CLUB is noise of mean 0; class: those "
        "of its class",
    )
    n_latents: int = Field(
        300, ge=1, description="latents of outlier prompts in all; each class has as many, 1 at least"
    )
    translator_lr: float = Field(0.01, gt=0, description="learning rate of what translates the teacher's features")
    club_lr: float = Field(1e-4, gt=0, description="learning rate of CLUB's q")
    teacher: TeacherSettings = Field(default_factory=TeacherSettings, description="the teacher")


class FRL(TrainerSettings):
    """`trainer.name: frl`: maximum likelihood of a generative network."""

    name: Literal["frl"] = Field(description="the trainer")
    frequency: bool = Field(True, description="whether the network also models the images' high-frequency channel")


# the settings of each trainer by its name, for whoever does without the trainers, which need torch
TRAINER_SETTINGS: dict[str, type[TrainerSettings]] = {
    "base": Base,
    "oe": OE,
    "dream_ood": DreamOOD,
    "dream_id": DreamID,
    "vos": VOS,
    "npos": NPOS,
    "oal": OAL,
    "frl": FRL,
}
