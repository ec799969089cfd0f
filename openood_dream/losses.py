"""Every training loss as a pure function of logits, features and labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.special import gammainccinv
from torch import nn

# --------------------------------------------------------------------------------------------------- energy, outliers


def energy(logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """E(x) = log sum_c w_c exp(logit_c): (B, C) -> (B,). Larger is more in-distribution (DREAM-OOD, Sec. 3.3).

    `weights` (C,) are those of VOS, negative ones count as zero; without them all are one.
    """
    if weights is not None:
        # not log(0), whose gradient is infinite
        logits = logits + weights.relu().clamp_min(torch.finfo(weights.dtype).tiny).log()
    return torch.logsumexp(logits, dim=1)


def energy_regularisation(
    id_logits: torch.Tensor, outlier_logits: torch.Tensor, phi: nn.Module, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy of phi(E(x)) telling ID (1) from outliers (0) (DREAM-OOD, Eq. 5; VOS, Eq. 6).

    Logits are (B, C) and (O, C); `phi` maps energies (B + O, 1) to two logits each. The mean over all B + O samples.
    """
    energies = torch.cat([energy(id_logits, weights), energy(outlier_logits, weights)])
    target = torch.zeros(len(energies), dtype=torch.long, device=energies.device)
    target[: len(id_logits)] = 1
    return F.cross_entropy(phi(energies.unsqueeze(1)), target)


def outlier_exposure(outlier_logits: torch.Tensor) -> torch.Tensor:
    """logsumexp(logits) - mean(logits), averaged over auxiliary outliers (O, C): the cross-entropy to uniform (OE)."""
    return (torch.logsumexp(outlier_logits, dim=1) - outlier_logits.mean(dim=1)).mean()


def with_extra_class(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, C + 1) with outliers as one more class, whose logit is 0.

    Softmax sees differences of logits alone, so that nothing is lost by fixing one of them; E(x) is then the log-odds
    of being in-distribution.
    """
    return F.pad(logits, (0, 1))


# --------------------------------------------------------------------------------------------------------------- VOS


def virtual_outliers(
    means: torch.Tensor, covariance: torch.Tensor, draws: int, select: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The `select` least likely of `draws` draws from each Gaussian with `means` (C, D) and one `covariance` (D, D).

    Returns (C * select, D), class by class, least likely first (VOS, Eq. 3). The likelihood of mu + L g depends on |g|
    alone, and |g| says nothing of g's direction: so the largest of `draws` chi-distributed lengths are drawn, by their
    order statistics, and a direction for each, and no other draw is ever made. Numbers are drawn on the CPU.
    """
    classes, width = means.shape
    uniform = torch.rand(classes, select, generator=generator, dtype=torch.float64)
    # the largest of n uniform numbers is U^(1/n), the next one that times U^(1/(n-1)), ...
    largest = (uniform.log() / (draws - torch.arange(select))).cumsum(1)
    length = torch.from_numpy(2 * gammainccinv(width / 2, -torch.expm1(largest).numpy())).sqrt()
    direction = F.normalize(torch.randn(classes, select, width, generator=generator, dtype=torch.float64), dim=2)
    g = (direction * length[..., None]).to(covariance)
    cholesky, _ = torch.linalg.cholesky_ex(covariance)
    return (means[:, None] + g @ cholesky.T).flatten(0, 1)


# -------------------------------------------------------------------------------------------------------------- NPOS


def moved_prototypes(
    prototypes: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, momentum: float
) -> torch.Tensor:
    """Unit prototypes (C, D) after p <- momentum p + (1 - momentum) z for each unit feature z (B, D) of their class, in
    order; lengths are set back to one at the end (CIDER, Eq. 6). The gradient reaches the features.
    """
    own = F.one_hot(labels, len(prototypes)).to(features.dtype)  # (B, C)
    later = own.sum(0) - own.cumsum(0)  # how many images of a class come after each image
    weights = own * (1 - momentum) * momentum**later
    return F.normalize(momentum ** own.sum(0)[:, None] * prototypes + weights.T @ features, dim=1)


def dispersion(prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """log of the mean of exp(cos / temperature) over the other prototypes, averaged over prototypes (C, D) (CIDER, Eq. 5)."""
    cosines = prototypes @ prototypes.T / temperature
    others = cosines.masked_fill(torch.eye(len(prototypes), dtype=torch.bool, device=cosines.device), -math.inf)
    return (others.logsumexp(1) - math.log(len(prototypes) - 1)).mean()


def compactness(
    features: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of unit features (B, D) over cos / temperature with the prototypes (C, D) (CIDER, Eq. 4)."""
    return F.cross_entropy(features @ prototypes.T / temperature, labels)


# --------------------------------------------------------------------------------------------------------------- OAL


def distillation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(softmax(teacher) || softmax(student)) of two (B, D), averaged over the batch (OAL)."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def club(mean: torch.Tensor, log_variance: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """CLUB's upper bound of the mutual information of x and y, in nats (Cheng et al., ICML 2020, Eq. 7).

    q(y|x) is the Gaussian of `mean` and `log_variance` (B, D), computed from B samples of x; `features` (B, D) are the
    samples of y that go with them. All B^2 pairs stand for independent x and y. A bound only where q fits the pairs.
    """
    together = (features - mean).square()
    # the mean over all y of (y - mean_i)^2, which needs no table of pairs
    apart = features.square().mean(0) - 2 * mean * features.mean(0) + mean.square()
    return ((apart - together) / (2 * log_variance.exp())).sum(1).mean()


def gaussian_fit(mean: torch.Tensor, log_variance: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of `features` (B, D) under Gaussians of `mean` and `log_variance` (B, D), less a constant."""
    return 0.5 * ((features - mean).square() / log_variance.exp() + log_variance).sum(1).mean()
