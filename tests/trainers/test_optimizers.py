"""Optimisers and schedules by name, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.trainers.optimizers import LEAST_RATE, Lookahead, groups, make_optimizer, make_schedule, running_mean

STEPS = 20


def rates(**changes) -> list[float]:
    """The learning rate of each step."""
    options = OptimizerSettings(**{"num_epochs": 1, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4} | changes)
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), options)
    schedule, found = make_schedule(optimizer, options, STEPS), []
    for _ in range(STEPS + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "name, cls", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimisers_are_torchs(name, cls):
    options = OptimizerSettings(name=name, num_epochs=1, lr=0.1, momentum=0.8, weight_decay=0.02)
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), options)
    group = optimizer.param_groups[0]
    assert type(optimizer) is cls and (group["lr"], group["weight_decay"]) == (0.1, 0.02)
    assert group["momentum"] == 0.8 and group["nesterov"] if name == "sgd" else group["betas"] == (0.8, 0.999)


def test_cosine_is_torchs():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    schedule, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=LEAST_RATE), []
    for _ in range(STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates() == pytest.approx(expected)


def test_linear_and_constant():
    falling = rates(schedule="linear")
    assert (
        falling[0] == 0.1
        and falling[STEPS // 2] == pytest.approx(0.05, rel=1e-4)
        and falling[-1] == pytest.approx(LEAST_RATE)
    )
    assert set(rates(schedule="constant")) == {0.1}


def test_halving_every_30_epochs():
    options = OptimizerSettings(num_epochs=90, lr=1e-3, momentum=0.9, weight_decay=0.0, schedule="halving")
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), options)
    schedule, found = make_schedule(optimizer, options, 2 * 90), []
    for _ in range(2 * 61):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found[0] == found[59] == 1e-3 and found[60] == 5e-4 and found[120] == 2.5e-4


def test_triangle():
    options = OptimizerSettings(num_epochs=1, lr=2.0, momentum=0.9, weight_decay=0.0, schedule="triangle")
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), options)
    schedule, found = make_schedule(optimizer, options, 100), []
    for _ in range(101):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [found[i] for i in (0, 23, 100)] == pytest.approx([0.4, 2.0, 0.14])
    assert (
        max(found) == found[23] and found[:24] == sorted(found[:24]) and found[23:] == sorted(found[23:], reverse=True)
    )


def test_shifts_of_batch_normalisation_have_a_rate_of_their_own():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    options = OptimizerSettings(num_epochs=1, lr=0.5, momentum=0.9, weight_decay=0.02, shift_factor=10)
    others, shifts = make_optimizer(groups(net, options), options).param_groups
    assert (others["lr"], others["weight_decay"], shifts["lr"]) == (0.5, 0.02, 5.0)
    assert shifts["weight_decay"] == pytest.approx(0.002) and shifts["params"] == [net[1].bias]
    assert len(others["params"]) == 5


def test_lookahead_is_the_slow_average():
    torch.manual_seed(0)
    net, steps = nn.Linear(3, 2), 23
    ahead = Lookahead(net, steps)
    slow, mean = net.weight.detach().clone(), net.weight.detach().clone()
    for step in range(1, steps + 1):
        moved = torch.randn(2, 3)
        slow = slow + moved
        with torch.no_grad():
            net.weight += moved
        if step == steps:
            slow = mean.clone()
        elif step % 5 == 0:
            decay = 0.95**5 * (step / steps) ** 3
            mean = decay * mean + (1 - decay) * slow
            slow = mean.clone()
        ahead.step()
        torch.testing.assert_close(net.weight.detach(), slow)
        if step == 12:  # goes on from a state
            state = ahead.state_dict()
            ahead = Lookahead(net, steps)
            ahead.load_state_dict(state)


def test_warm_up_and_exponential():
    options = OptimizerSettings(
        num_epochs=4,
        lr=0.5,
        momentum=0.95,
        second_beta=0.9995,
        weight_decay=0.0,
        schedule="exponential",
        warm_up=2,
        name="adam",
    )
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), options)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.9995)
    schedule, found = make_schedule(optimizer, options, 40), []
    for _ in range(40):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    slow = [0.5 * 0.999995**step * min(1, (step + 1) / 20) for step in range(40)]
    assert found == pytest.approx(slow, rel=1e-9)


def test_the_running_mean_is_what_counts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, slow = running_mean(net, 0.9), net[0].weight.detach().clone()
    for _ in range(7):
        with torch.no_grad():
            net[0].weight += torch.randn(2, 3)
            net[1].running_mean += 1
        average.update_parameters(net)
        slow = 0.9 * slow + 0.1 * net[0].weight.detach()
    torch.testing.assert_close(average.module[0].weight, slow)
    assert torch.equal(average.module[1].running_mean, net[1].running_mean)
    other = running_mean(net, 0.9)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.module[0].weight, average.module[0].weight)
