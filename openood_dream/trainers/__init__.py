"""One trainer per method, in OpenOOD's protocol, reachable by name.

`TRAINERS[name](net, train_loader, config)`, or `(net, train_loader, outlier_loader, config)` where `auxiliary` is set,
has `train_epoch(epoch_idx)` that returns the network and `{"epoch_idx", "loss", "terms"}`.
"""

from openood_dream.trainers import base, dream_id, dream_ood, npos, oe, vos  # noqa: F401  (each registers its trainer)
from openood_dream.trainers.base import TRAINERS, BaseTrainer, OutlierTrainer, get_trainer

__all__ = ["TRAINERS", "BaseTrainer", "OutlierTrainer", "get_trainer"]
