"""A stage of the quickstart on a busy machine: `make bench`, or `pytest benchmarks/bench_busy.py`.

Sixty steps of the digits' diffusion model, with a thread for every core: quiet, and beside as many processes that do nothing
but compute. Under load a step may take three times its quiet time; what it would take if threads that wait for each
other slept at once, or did not sleep (see openood_dream/cores.py), stands beside. Where the machine has other work
too, its load average says so; then "quiet" is not, and the ratio is too good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openood_dream import cores

STEPS = 60
WAITING = {  # OMP_WAIT_POLICY, GOMP_SPINCOUNT, and the wanted ratio
    "ours": ("PASSIVE", str(cores.SPINS), 1 / 3),
    "asleep": ("PASSIVE", "0", None),
    "spinning": ("ACTIVE", "300000", None),
}
STAGE = """
import sys
from pathlib import Path

import openood_dream
import torch
import torch.nn.functional as F

from openood_dream.dream.generator.models import Denoiser, small_unet
from openood_dream.dream.generator.training import Samples, Session, train_denoiser
from openood_dream.dream.prompts import class_prompts
from openood_dream.dream.source import Source, make_text_encoder, text_inputs
from openood_dream.experiment import load_config
from openood_dream.parallel.processes import Processes

folder, config = Path(sys.argv[1]), load_config(["benchmarks/digits.yml"]).dream
settings, names = config.generator.model_copy(update={"steps": int(sys.argv[2])}), list(config.class_names)
make_text_encoder(text_inputs(names, config.synthesis.prompt, settings), folder)
((tokenizer, encoder),) = Source(str(folder), None, None).text_parts()
unet = small_unet(settings, 4)
nets = Denoiser(unet, encoder, class_prompts(tokenizer, names, config.synthesis))
anchors, labels = torch.randn(len(names), settings.text_dim), torch.arange(600) % len(names)
mean = torch.randn(600, unet.config.in_channels, 4, 4)
samples = Samples(mean, torch.zeros_like(mean), labels, F.normalize(anchors[labels], dim=1))
session = Session(Processes(torch.device("cpu")), torch.float32, folder, 10**6)
for line in sys.stdin:
    train_denoiser(nets, samples, anchors, settings, session)
    for state in folder.glob("*.state"):
        state.unlink()
    print("done", flush=True)
"""


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that would compute for ever, stopped."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    tell(found, signal.SIGSTOP)
    try:
        yield found
    finally:
        for one in found:
            one.kill()
            one.wait()


def tell(processes: list[subprocess.Popen[bytes]], what: signal.Signals) -> None:
    for one in processes:
        one.send_signal(what)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
@pytest.mark.parametrize("waiting", WAITING)
def test_a_stage_beside_busy_processes(against, benchmark, tmp_path: Path, waiting):
    count, (policy, spins, wanted) = cores.available(), WAITING[waiting]
    given = os.environ | {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": str(count)}
    words = [sys.executable, "-c", STAGE, str(tmp_path), str(STEPS)]
    with (
        subprocess.Popen(words, env=given, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stage,
        neighbours(count) as busy,
    ):

        def steps() -> None:
            print("go", file=stage.stdin, flush=True)
            assert stage.stdout.readline() == "done\n"

        def beside_others() -> None:
            tell(busy, signal.SIGCONT)
            steps()
            tell(busy, signal.SIGSTOP)

        load = os.getloadavg()[0]
        against(beside_others, steps, f"{STEPS} steps on a quiet machine", wanted=wanted, rounds=2, reference_rounds=2)
        stage.stdin.close()
    if benchmark.stats is not None:
        benchmark.extra_info |= {"times": 1 / benchmark.extra_info["ratio"], "busy_processes": count, "load": load}
