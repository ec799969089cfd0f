"""The samplers: how outlier embeddings are found. Importing this registers all of them."""

from openood_dream.dream.samplers import boundary, knn, ncis, plain
from openood_dream.dream.samplers.base import SAMPLERS, OutlierSettings, Sampler, get_sampler, sampler

__all__ = ["SAMPLERS", "OutlierSettings", "Sampler", "boundary", "get_sampler", "knn", "ncis", "plain", "sampler"]
