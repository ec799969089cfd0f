"""All trainers: each module registers its own."""

from openood_dream.trainers import base, dream_id, dream_ood, frl, npos, oal, oe, vos  # noqa: F401
from openood_dream.trainers.base import TRAINERS, BaseTrainer, OutlierTrainer, get_trainer

__all__ = ["TRAINERS", "BaseTrainer", "OutlierTrainer", "get_trainer"]
