"""One trainer per method, in OpenOOD's protocol, reachable by name.

`TRAINERS[name](net, train_loader, config)`, or `(net, train_loader, outlier_loader, config)` where `auxiliary` is set,
or with keywords `teacher`, `embeddings` and `latents` where `taught` is set, has `train_epoch(epoch_idx)` that returns
the network and `{"epoch_idx", "loss", "terms"}`.
"""

from openood_dream.trainers import base, dream_id, dream_ood, frl, npos, oal, oe, vos  # noqa: F401  (they register)
from openood_dream.trainers.base import TRAINERS, BaseTrainer, OutlierTrainer, get_trainer

__all__ = ["TRAINERS", "BaseTrainer", "OutlierTrainer", "get_trainer"]
