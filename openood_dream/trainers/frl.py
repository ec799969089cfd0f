"""Maximum likelihood of a generative network, of images alone or with their high frequencies (FRL, WACV 2023)."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn
from torch.utils.data import DataLoader

from openood_dream.device import autocast
from openood_dream.errors import InputError, show
from openood_dream.networks.settings import GenerativeNetwork
from openood_dream.parallel.processes import unwrap_model
from openood_dream.trainers.base import BaseTrainer, Batch, Plan, Terms, trainer
from openood_dream.trainers.settings import FRL


@trainer("frl", FRL)
class FRLTrainer(BaseTrainer):
    """The bound of a network, in bits per dimension, by the optimiser of the config: pipelines/train/frl.yml has the paper's.

    Args:
        net: vae, glow or pixelcnnpp.
        train_loader: see BaseTrainer.
        settings: FRL's; its `frequency` must be that of the network.
        options: the other keyword arguments of BaseTrainer.

    Raises:
        InputError: for any other network, and where `trainer.frequency` and `network.frequency` differ.
    """

    generative = True
    settings: FRL

    @classmethod
    def check_plan(cls, settings: FRL, plan: Plan) -> None:
        super().check_plan(settings, plan)
        network = cast(GenerativeNetwork, plan.network)
        if network.frequency != settings.frequency:
            raise network.error("frequency", _other_frequency(settings.frequency))

    def __init__(self, net: nn.Module, train_loader: DataLoader, *, settings: FRL, **options: Any) -> None:
        network, frequency = cast(Any, unwrap_model(net)), settings.frequency
        if not hasattr(network, "dimensions"):
            raise InputError("network.name: the trainer frl needs a generative network: vae, glow or pixelcnnpp")
        if bool(network.frequency) != frequency:
            raise InputError(f"network.frequency: {_other_frequency(frequency)}")
        options["optimizer"].refuse_smoothing()
        self.bits = math.log(2) * network.dimensions
        super().__init__(net, train_loader, settings=settings, **options)

    def terms(self, *batches: Batch) -> Terms:
        (batch,) = batches
        with autocast(self.device, self.dtype):
            return {"bits per dimension": -self.net(self.images(batch)).float().mean() / self.bits}


def _other_frequency(trained: bool) -> str:
    """What is wrong where `trainer.frequency` is `trained` and the network's is not."""
    return (
        f"got {show(not trained)}, and trainer.frequency is {show(trained)}; set it to '@{{trainer.frequency}}', as "
        "pipelines/train/frl.yml does"
    )
