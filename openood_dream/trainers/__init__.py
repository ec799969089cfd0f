"""One trainer per method, in OpenOOD's protocol, registered by name next to its definition."""

from openood_dream.trainers import base, dream_id, dream_ood, frl, npos, oal, oe, vos  # noqa: F401  (they register)
from openood_dream.trainers.base import TRAINERS, BaseTrainer, OutlierTrainer, get_trainer

__all__ = ["TRAINERS", "BaseTrainer", "OutlierTrainer", "get_trainer"]
