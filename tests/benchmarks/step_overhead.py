"""How much a training step of ours costs beyond a bare forward and backward of the same model.

Prints: seconds of a bare step (same base, same attached LoRA, same batch), of a step of
`loop.train` with and without its optimizer, their ratios, and the split by phase; all of it
twice, with malloc as it is and then told to keep freed memory, as every run does. Asserts nothing.
The two kinds of step are interleaved, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from optbench import rng
from optbench.config.compose import compose_runs
from optbench.data.batches import plan_epoch
from optbench.data.latent_cache import encode_dataset
from optbench.data.text_cache import TextCache
from optbench.lora.network import LoraNetwork, build_network
from optbench.models import load_base
from optbench.models.text.clip import ClipTextOptions
from optbench.optim import telemetry
from optbench.optim.build import build_optimizer
from optbench.optim.stepping import BuiltOptimizer
from optbench.records import StepRecord
from optbench.training import memory
from optbench.training.lane import Lane
from optbench.training.loop import StepDone, TrainingPlan, train

NUM_STEPS = 60
NUM_WARMUP_STEPS = 5


def main() -> None:
    """Measure in two processes of their own, because malloc cannot be told to forget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--malloc", choices=["plain", "keeping"])
    malloc = parser.parse_args().malloc
    if malloc is not None:
        measure(is_tuned=malloc == "keeping" and memory.keep_freed_memory())
        return
    for choice in ("plain", "keeping"):
        subprocess.run([sys.executable, __file__, "--malloc", choice], check=True)


def measure(*, is_tuned: bool) -> None:
    """Measure on the embedded base with the default config, and print."""
    with tempfile.TemporaryDirectory() as folder:
        asked = compose_runs([f"runs_dir={folder}", f"cache_dir={folder}"])
        (run,) = asked.runs
        config = run.config
        base = load_base(config.base, device=torch.device("cpu"), dtype=torch.float32)
        latents = encode_dataset(run.dataset, base, cache_dir=Path(folder), flips=False)
    network = build_network(base.lora_targets(), config.network, seed=0)
    optimizer = build_optimizer(
        config.optimizer,
        network.parameter_groups(),
        lr_mult=1.0,
        lr_scheduler=config.lr_scheduler,
        total_steps=NUM_STEPS,
    )
    planned = plan_epoch(run.dataset, config.dataset, seed=0, epoch=1, batch_size=2)
    whole = [one for one in planned if len(one.samples) == 2]
    batches = list(latents.batches(whole))[:NUM_STEPS]
    batches = [one for one in batches if one.latents_BCHW.shape == batches[0].latents_BCHW.shape]
    num_steps = len(batches)
    steps = train(
        base,
        [Lane(network=network, optimizer=optimizer)],
        lambda epoch, first: batches,
        options=config.train,
        plan=TrainingPlan(seed=0, loss=config.loss, steps_per_epoch=num_steps, last_step=num_steps),
        accelerator=Accelerator(cpu=True),
        captions=TextCache(base),
    )
    bare, ours, records = [], [], []
    assert config.train.num_threads is not None
    torch.set_num_threads(config.train.num_threads)
    for batch in batches:
        noise = torch.randn(batch.latents_BCHW.shape, generator=rng.generator(0, "noise"))
        captions = [sample.caption for sample in batch.samples]
        latents_BCHW = batch.latents_BCHW.contiguous(memory_format=torch.channels_last)
        with network.attached():
            started = time.perf_counter()
            states = base.encode_captions(captions, ClipTextOptions())
            predicted = base.predict(latents_BCHW, torch.tensor([500, 500]), states)
            torch.nn.functional.mse_loss(predicted, noise).backward()
            bare.append(time.perf_counter() - started)
        optimizer.zero_grad()
        started = time.perf_counter()
        event = next(steps)
        assert isinstance(event, StepDone)
        record = event.record
        ours.append(time.perf_counter() - started - record.seconds_optimizer)
        records.append(record)
    _print_telemetry(network, optimizer, statistics.median(ours))
    _print(bare[NUM_WARMUP_STEPS:], ours[NUM_WARMUP_STEPS:], records[NUM_WARMUP_STEPS:], is_tuned)


def _print_telemetry(network: LoraNetwork, optimizer: BuiltOptimizer, step: float) -> None:
    """Print what looking at the optimizer costs: every tenth step, and at the end of an epoch."""
    ratios, rest = [], []
    for _ in range(NUM_WARMUP_STEPS + 20):
        started = time.perf_counter()
        with telemetry.update_ratios(optimizer.optimizer, enabled=True):
            pass
        ratios.append(time.perf_counter() - started)
        started = time.perf_counter()
        telemetry.state_size(optimizer.optimizer)
        network.layer_norms()
        rest.append(time.perf_counter() - started)
    ratio = statistics.median(ratios[NUM_WARMUP_STEPS:])
    print(
        f"update ratio {ratio * 1e3:.2f} ms every {telemetry.RATIO_EVERY} steps, "
        f"{ratio / telemetry.RATIO_EVERY / step:.2%} of a step; layer norms and state size "
        f"{statistics.median(rest[NUM_WARMUP_STEPS:]) * 1e3:.2f} ms an epoch"
    )


def _print(bare: list[float], ours: list[float], records: list[StepRecord], is_tuned: bool) -> None:
    floor, step = statistics.median(bare), statistics.median(ours)
    print(f"threads {torch.get_num_threads()}, freed memory kept: {is_tuned}, {len(bare)} steps")
    print(f"bare forward + backward   {floor * 1e3:8.2f} ms")
    print(f"our step, no optimizer    {step * 1e3:8.2f} ms   ratio {step / floor:.3f}")
    whole = step + statistics.median(record.seconds_optimizer for record in records)
    print(f"our step, all of it       {whole * 1e3:8.2f} ms   ratio {whole / floor:.3f}")
    for phase in ("data", "forward", "backward", "optimizer"):
        seconds = statistics.median(getattr(record, f"seconds_{phase}") for record in records)
        print(f"  of which {phase:<14} {seconds * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
