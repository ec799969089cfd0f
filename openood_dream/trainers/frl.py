"""Maximum likelihood of a generative model, of images alone or with their high frequencies (FRL, WACV 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.config import InputError
from openood_dream.networks import autocast
from openood_dream.trainers.base import BaseTrainer, bare, trainer

HALVED_EVERY = 30  # epochs


@trainer("frl")
class FRLTrainer(BaseTrainer):
    """Adam on the bound of `network` (vae, glow, pixelcnnpp), in bits per dimension; its rate halves every 30 epochs.

    Raises InputError for any other network, and where `trainer.frequency` and `network.frequency` differ.
    """

    title = "FRL"

    def __init__(self, net: nn.Module, train_loader: DataLoader, config: dict) -> None:
        super().__init__(net, train_loader, config)
        network, frequency = bare(net), self.settings.frequency
        if not hasattr(network, "dimensions"):
            raise InputError("network.name: the trainer frl needs a generative network: vae, glow or pixelcnnpp")
        if bool(network.frequency) != frequency:
            raise InputError(
                f"network.frequency: got {str(not frequency).lower()}, and trainer.frequency is "
                f"{str(frequency).lower()}; set it to '@{{trainer.frequency}}', as pipelines/train/frl.yml does"
            )
        self.bits = math.log(2) * network.dimensions
        options, steps = config["optimizer"], len(train_loader)
        self.optimizer = torch.optim.Adam(
            self.parameters(), options["lr"], betas=(options["momentum"], 0.999), weight_decay=options["weight_decay"]
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, HALVED_EVERY * steps, gamma=0.5)

    def terms(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        with autocast(self.device, self.dtype):
            return {"bits per dimension": -self.net(self.images(batch)).float().mean() / self.bits}
