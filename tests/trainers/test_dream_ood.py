"""DREAM-OOD's phase 3: the loss by hand, its alternatives, and a phi that keeps the energies' order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toys import Batches, Net, make, total


def pair(size: int = 5, outliers: int = 3) -> tuple[Batches, Batches]:
    return Batches(1, size=size), Batches(1, size=outliers, label=-1)


def test_loss_by_hand():
    loaders = pair()
    trainer = make("dream_ood", *loaders)
    (batch,), (outliers,) = (loader.batches for loader in loaders)
    logits, others = trainer.net(batch["data"]), trainer.net(outliers["data"])
    energies = torch.cat([logits.logsumexp(1), others.logsumexp(1)])
    known = torch.cat([torch.ones(5), torch.zeros(3)])
    odds = trainer.phi(energies[:, None]) @ torch.tensor([-1.0, 1.0])
    expected = F.cross_entropy(logits, batch["label"]) + 1.5 * F.binary_cross_entropy_with_logits(odds, known)
    assert total(trainer, batch, outliers).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_outlier_exposure():
    loaders, net = pair(), Net()
    ours = make("dream_ood", *loaders, net=net, settings={"beta": 0.5, "loss": "oe"})
    batches = [loader.batches[0] for loader in loaders]
    assert total(ours, *batches).item() == pytest.approx(total(make("oe", *loaders, net=net), *batches).item())


def test_outliers_as_one_more_class():
    loaders = pair()
    trainer = make("dream_ood", *loaders, settings={"beta": 0.4, "loss": "extra_class"})
    (batch,), (outliers,) = (loader.batches for loader in loaders)
    known, others = (F.pad(trainer.net(x), (0, 1)) for x in (batch["data"], outliers["data"]))
    expected = F.cross_entropy(known, batch["label"]) + 0.4 * F.cross_entropy(others, torch.full((3,), 3))
    assert total(trainer, batch, outliers).item() == pytest.approx(expected.item(), rel=1e-5)


def test_phi_is_trained_with_the_network():
    trainer = make("dream_ood", Batches(2), Batches(2, label=-1))
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in (*trainer.phi.parameters(), *trainer.net.parameters())} <= trained


def test_phi_rises_with_the_energy():
    trainer = make("dream_ood", Batches(1), Batches(1, label=-1))
    with torch.no_grad():
        trainer.phi.weight.copy_(torch.tensor([[3.0], [-1.0]]))
    trainer.train_epoch(1)
    outlier, id_ = trainer.phi.weight[:, 0].tolist()
    assert id_ - outlier == pytest.approx(1.0)
    before = torch.tensor([[-0.2], [2.0]])  # rises enough, so it stays
    with torch.no_grad():
        trainer.phi.weight.copy_(before)
    trainer.phi.hold()
    assert torch.equal(trainer.phi.weight, before)


def test_outliers_reach_the_network():
    """In a public implementation of a similar method no gradient does."""
    loaders = pair()
    trainer = make("dream_ood", *loaders)
    x = loaders[1].batches[0]["data"].requires_grad_()
    total(trainer, *(loader.batches[0] for loader in loaders)).backward()
    assert x.grad.abs().sum() > 0
