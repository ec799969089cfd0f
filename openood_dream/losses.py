"""Every training loss as a pure function of logits, features and labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.special import gammainccinv
from torch import Tensor, nn

from openood_dream.device import copied

# --------------------------------------------------------------------------------------------------- energy, outliers


def energy(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """E(x) = log sum_c w_c exp(logit_c); larger is more in-distribution (DREAM-OOD, Sec. 3.3).

    Args:
        logits: (B, C).
        weights: (C,), those of VOS, where negative ones count as zero; None: all are one.

    Returns:
        Energies (B,).
    """
    if weights is not None:
        # not log(0), whose gradient is infinite
        logits = logits + weights.relu().clamp_min(torch.finfo(weights.dtype).tiny).log()
    return torch.logsumexp(logits, dim=1)


def energy_regularisation(
    id_logits: Tensor, outlier_logits: Tensor, phi: nn.Module, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of phi(E(x)) telling ID (1) from outliers (0) (DREAM-OOD, Eq. 5; VOS, Eq. 6).

    Args:
        id_logits: (B, C).
        outlier_logits: (O, C).
        phi: maps energies (B + O, 1) to logits (B + O, 2) of outlier and ID.
        weights: (C,), see `energy`.

    Returns:
        The mean over all B + O samples.
    """
    energies = torch.cat([energy(id_logits, weights), energy(outlier_logits, weights)])
    target = torch.zeros(len(energies), dtype=torch.long, device=energies.device)
    target[: len(id_logits)] = 1
    return F.cross_entropy(phi(energies.unsqueeze(1)), target)


def energy_margins(id_logits: Tensor, outlier_logits: Tensor, m_in: float, m_out: float) -> Tensor:
    """max(0, m_in - E)^2 averaged over ID plus max(0, E - m_out)^2 averaged over outliers (Liu et al., NeurIPS 2020, Eq. 8).

    Their energies have the other sign, and so have their margins.

    Args:
        id_logits: (B, C).
        outlier_logits: (O, C).
        m_in: the energy above which ID costs nothing.
        m_out: the energy below which an outlier costs nothing.
    """
    low, high = (m_in - energy(id_logits)).relu(), (energy(outlier_logits) - m_out).relu()
    return low.square().mean() + high.square().mean()


def outlier_exposure(outlier_logits: Tensor) -> Tensor:
    """logsumexp(logits) - mean(logits), averaged over auxiliary outliers (O, C): the cross-entropy to uniform (OE)."""
    return (torch.logsumexp(outlier_logits, dim=1) - outlier_logits.mean(dim=1)).mean()


def with_extra_class(logits: Tensor) -> Tensor:
    """Logits (B, C) with outliers as one more class, whose logit is 0: (B, C + 1).

    Softmax sees differences of logits alone, so that nothing is lost by fixing one of them; E(x) is then the log-odds
    of being in-distribution.
    """
    return F.pad(logits, (0, 1))


# --------------------------------------------------------------------------------------------------------------- VOS


def virtual_outliers(
    means: Tensor, covariance: Tensor, draws: int, select: int, generator: torch.Generator | None = None
) -> Tensor:
    """The least likely of many draws from the Gaussian of each class (VOS, Eq. 3).

    The likelihood of mu + L g depends on |g| alone, and |g| says nothing of g's direction: so the largest of `draws`
    chi-distributed lengths are drawn, by their order statistics, and a direction for each, and no other draw is ever
    made. Numbers are drawn on the CPU.

    Args:
        means: (C, D).
        covariance: (D, D), that of every class.
        draws: draws from each Gaussian.
        select: how many of them are wanted.
        generator: CPU generator of the draws; None: torch's own.

    Returns:
        Outliers (C * select, D), class by class, least likely first.

    Raises:
        ValueError: select is not in 1..draws.
    """
    if not 1 <= select <= draws:
        raise ValueError(f"select={select} is not in 1..{draws}, the number of draws")
    classes, width = means.shape
    uniform = torch.rand(classes, select, generator=generator, dtype=torch.float64)
    # the largest of n uniform numbers is U^(1/n), the next one that times U^(1/(n-1)), ...
    largest = (uniform.log() / (draws - torch.arange(select))).cumsum(1)
    length = torch.from_numpy(2 * gammainccinv(width / 2, -torch.expm1(largest).numpy())).sqrt()
    direction = F.normalize(torch.randn(classes, select, width, generator=generator, dtype=torch.float64), dim=2)
    g = copied((direction * length[..., None]).to(covariance.dtype), covariance.device)
    cholesky, _ = torch.linalg.cholesky_ex(covariance)
    return (means[:, None] + g @ cholesky.T).flatten(0, 1)


# -------------------------------------------------------------------------------------------------------------- NPOS

# that of supervised contrastive learning, in whose units CIDER's code measures the compactness
FIRST_TEMPERATURE = 0.07


def moved_prototypes(
    prototypes: Tensor, features: Tensor, labels: Tensor, momentum: float, most: int | None = None
) -> Tensor:
    """Prototypes after p <- unit(momentum p + (1 - momentum) z) for each feature z of their class, in order (CIDER, Eq. 6).

    The first features of all classes are taken at once, then the second ones, and so on: classes have nothing to do with
    each other. The gradient reaches the features.

    Args:
        prototypes: (C, D), unit length, or zero before the first feature of a class.
        features: (B, D), unit length.
        labels: (B,), the class of each feature.
        momentum: in 0..1.
        most: how many features one class has at most; None: the labels are asked, for which a GPU is waited for.

    Returns:
        The prototypes (C, D).
    """
    own = F.one_hot(labels, len(prototypes))  # (B, C)
    place = (own.cumsum(0) * own).sum(1) - 1  # among the features of the class
    for number in range(int(own.sum(0).max()) if most is None else most):
        taken = (own * (place == number)[:, None]).to(features.dtype)  # one feature of a class or none
        moved = F.normalize(momentum * prototypes + (1 - momentum) * (taken.T @ features), dim=1)
        prototypes = torch.where(taken.sum(0)[:, None] > 0, moved, prototypes)
    return prototypes


def dispersion(prototypes: Tensor, temperature: float) -> Tensor:
    """log of the mean of exp(cos / temperature) over the other prototypes, averaged over prototypes (CIDER, Eq. 5).

    Args:
        prototypes: (C, D), unit length.
        temperature: greater than zero.

    Raises:
        ValueError: there are no two prototypes.
    """
    if len(prototypes) < 2:
        raise ValueError(f"{len(prototypes)} prototypes have no distance; expected 2 or more")
    cosines = prototypes @ prototypes.T / temperature
    others = cosines.masked_fill(torch.eye(len(prototypes), dtype=torch.bool, device=cosines.device), -math.inf)
    return (others.logsumexp(1) - math.log(len(prototypes) - 1)).mean()


def compactness(features: Tensor, prototypes: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of features over cos / temperature with the prototypes (CIDER, Eq. 4), times temperature / 0.07.

    The factor is the code's, which Eq. 4 lacks: it keeps the gradients as large as at its first temperature.

    Args:
        features: (B, D), unit length.
        prototypes: (C, D), unit length.
        labels: (B,), the class of each feature.
        temperature: greater than zero.
    """
    return temperature / FIRST_TEMPERATURE * F.cross_entropy(features @ prototypes.T / temperature, labels)


# --------------------------------------------------------------------------------------------------------------- OAL


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), averaged over the batch (OAL).

    Args:
        student: logits or features (B, D).
        teacher: those of the teacher (B, D).
    """
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def club(mean: Tensor, log_variance: Tensor, features: Tensor) -> Tensor:
    """CLUB's upper bound of the mutual information of x and y, in nats (Cheng et al., ICML 2020, Eq. 7).

    All B^2 pairs stand for independent x and y. It is a bound only where q fits the pairs.

    Args:
        mean: (B, D), of the Gaussian q(y|x), computed from B samples of x.
        log_variance: (B, D), the logarithms of its variances.
        features: (B, D), the samples of y that go with those of x.
    """
    together = (features - mean).square()
    # the mean over all y of (y - mean_i)^2, which needs no table of pairs
    apart = features.square().mean(0) - 2 * mean * features.mean(0) + mean.square()
    return ((apart - together) / (2 * log_variance.exp())).sum(1).mean()


def gaussian_fit(mean: Tensor, log_variance: Tensor, features: Tensor) -> Tensor:
    """Negative log-likelihood of features under Gaussians, less a constant, averaged over the batch.

    Args:
        mean: (B, D).
        log_variance: (B, D), the logarithms of the variances.
        features: (B, D).
    """
    return 0.5 * ((features - mean).square() / log_variance.exp() + log_variance).sum(1).mean()
