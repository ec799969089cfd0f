"""Every training loss as a pure function of logits, features and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def energy(logits: torch.Tensor) -> torch.Tensor:
    """E(x) = logsumexp of the logits: (B, C) -> (B,). Larger is more in-distribution (DREAM-OOD, Sec. 3.3)."""
    return torch.logsumexp(logits, dim=1)


def energy_regularisation(id_logits: torch.Tensor, outlier_logits: torch.Tensor, phi: nn.Module) -> torch.Tensor:
    """Binary cross-entropy of phi(E(x)) telling ID (1) from imagined outliers (0) (DREAM-OOD, Eq. 5).

    Logits are (B, C) and (O, C); `phi` maps energies (B + O, 1) to two logits each. The mean over all B + O samples.
    """
    energies = torch.cat([energy(id_logits), energy(outlier_logits)])
    target = torch.zeros(len(energies), dtype=torch.long, device=energies.device)
    target[: len(id_logits)] = 1
    return F.cross_entropy(phi(energies.unsqueeze(1)), target)


def outlier_exposure(outlier_logits: torch.Tensor) -> torch.Tensor:
    """logsumexp(logits) - mean(logits), averaged over auxiliary outliers (O, C): cross-entropy to uniform, less log C (OE)."""
    return (torch.logsumexp(outlier_logits, dim=1) - outlier_logits.mean(dim=1)).mean()
