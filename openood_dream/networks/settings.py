"""Settings of networks: the section `network`, of classifiers and of generative models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from openood_dream.config.schema import HostSection, Name, Section, rule


class NetworkSettings(HostSection):
    """`network`: a classifier, `timm:<model>` or one of OpenOOD's; generative models have other keys."""

    section = "network"
    HOST_KEYS = (
        "backbone",
        "bit_pretrained_dir",
        "dof",
        "dropout_p",
        "droprate",
        "feat_dim",
        "feat_extract_network",
        "head",
        "image_size",
        "kl_scale",
        "load_cached_faiss",
        "model",
        "nc",
        "ndf",
        "ngf",
        "normal_load",
        "ns",
        "num_block_open",
        "num_clusters",
        "num_layers",
        "num_logits",
        "nz",
        "shift_trans_type",
        "simclr_dim",
        "similarity_measure",
        "temp",
        "type",
        "weight_pl",
        "widen_factor",
    )
    # of generative networks: trainers and detectors that set it take no other
    SILENT = (*HostSection.SILENT, "frequency")

    name: Name = Field(description="what is trained or scored: a classifier, or with trainer frl a generative model")
    num_classes: int | None = Field(None, ge=1, description="ID classes")
    args: dict[str, Any] | None = Field(None, description="further arguments of timm's model")
    pretrained: bool = Field(False, description="whether to load the checkpoint")
    checkpoint: str | None = Field(None, description="file of the weights")
    num_gpus: int | None = Field(None, ge=0, description="OpenOOD's number of processes")


class GenerativeNetwork(Section):
    """`network` where it is a generative model: what the three have in common. Their defaults are the papers' sizes."""

    section = "network"

    name: Name = Field(description="the model")
    image_size: int = Field(ge=8, description="pixels a side")
    channels: Literal[1, 3] = Field(3, description="3: colours, 1: grey")
    frequency: bool = Field(False, description="whether the high-frequency channel is modelled too")
    blur: Literal["mirror", "published"] = Field(
        "mirror", description="blur of the high-frequency channel; published: the public code's, black beyond the edges"
    )
    normalization_type: str | None = Field(None, description="the data set's, to be undone")
    num_classes: int | None = Field(None, description="not used; classifiers need it")
    num_gpus: int | None = Field(None, description="OpenOOD's number of processes")
    pretrained: bool = Field(False, description="whether to load the checkpoint")
    checkpoint: str | None = Field(None, description="file of the weights")

    def _needs_multiple(self, of: int, why: str) -> None:
        text = f"expected a multiple of {of} ({why}), got {self.image_size}"
        rule(self.image_size % of == 0, text, "image_size")


class VAENetwork(GenerativeNetwork):
    """`network.name: vae`."""

    latent: int = Field(200, ge=1, description="numbers in the latent vector z")
    width: int = Field(64, ge=1, description="channels at half of the size; double at each further halving")

    @model_validator(mode="after")
    def _size(self) -> VAENetwork:
        text = f"expected a power of two, got {self.image_size}"
        rule(self.image_size & (self.image_size - 1) == 0, text, "image_size")
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

AnyNetwork = NetworkSettings | GenerativeNetwork


def network_model(name: object) -> type[NetworkSettings] | type[GenerativeNetwork]:
    """The settings model of a `network.name`."""
    return GENERATIVE_SETTINGS.get(str(name), NetworkSettings)
