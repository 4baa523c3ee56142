"""The one training loop: any module, any loss, on one process or many, resumable after a kill.

    accelerate launch --num_processes 2 -m train.distill …

Hugging Face accelerate places, wraps and scales; `train.trainer` says what a step is; this module runs steps to the end.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from torch import Tensor, nn
from tqdm import tqdm

from kdc_edge.errors import GateError, MissingBackend, UsageError
from train import state
from train.ranges import check_numbers
from train.recipes import LoopConfig
from train.sharding import settle
from train.trainer import OTHER, History, Loss, Trainer

OUTSIDE = ("checkpointing", "tensorboard", "sample_every")  # settings that change nothing that is learned
ROLLBACKS = 3  # in a row, then the run gives up
Sampler = Callable[[nn.Module, int], None]


def processes() -> PartialState:
    """This process and its fellows. On a CPU accelerate looks for them only when it is told that it is on one."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers would leave all but the first without weights
    return PartialState(cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available())


def pick_device() -> torch.device:
    """This process's own: its GPU if there is one."""
    return processes().device


def is_main() -> bool:
    """Whether this process writes what all have learned."""
    return processes().is_main_process


def fit(
    module: nn.Module,
    loss: Loss,
    config: LoopConfig,
    path: Path,
    *,
    key: Mapping[str, Any],
    label: str,
    save_every: float = 120.0,
    log_every: int = 25,
    sample: Sampler | None = None,
) -> History:
    """Train `module` in place, from the state at `path` if there is one; afterwards it holds the averaged weights, frozen.

    `loss(network, part)` returns the weighted terms, means over the part's rows; their sum is minimised. `key` is
    everything that makes this run what it is; a state with another key is refused (UsageError), and so are settings that
    cannot be meant. A loss or gradient that is not finite takes the run back to its last state, with other random draws;
    the third time in a row is GateError.
    """
    accelerator = launch(config, path.parent)
    check(config, accelerator.num_processes)
    if config.checkpointing:
        module.enable_gradient_checkpointing()
    trainer = Trainer(module.train(), config, digest(key, config), accelerator, recipe_of(key, config))
    need = state.room(path, trainer.bytes())
    with state.reserved(path.parent, need) if accelerator.is_main_process else contextlib.nullcontext():
        trainer.load(path)
        if config.tensorboard:
            accelerator.init_trackers(label)
        _run(trainer, loss, path, label, save_every, log_every, sample)
        trainer.save(path)
        for tracker in accelerator.trackers:  # `end_training` would end the processes' group, too, for good
            tracker.finish()
    trainer.finish()
    return trainer.history


def digest(key: Mapping[str, Any], config: LoopConfig) -> str:
    """What a run is known by."""
    settings = {name: value for name, value in asdict(config).items() if name not in OUTSIDE}
    return hashlib.sha256(json.dumps({**key, "loop": settings}, sort_keys=True, default=str).encode()).hexdigest()


def recipe_of(key: Mapping[str, Any], config: LoopConfig) -> str:
    """`digest` without the data."""
    return digest({name: value for name, value in key.items() if name != "data"}, config)


def ready(config: LoopConfig, path: Path, key: Mapping[str, Any]) -> None:
    """Before anything is computed: what `fit` would refuse, as far as it is known without the data."""
    check(config, launch(config, path.parent).num_processes)
    if not is_main():
        return
    with state.reserved(path.parent, 0):
        found = state.about(path).get("recipe")
    if found is not None and found != recipe_of(key, config):
        raise UsageError(f"{path} {OTHER}")


def launch(config: LoopConfig, folder: Path) -> Accelerator:
    """One process or, under `accelerate launch`, one of many."""
    # an earlier run of this process may have had another precision, and under FSDP has renamed the kind of launch
    AcceleratorState._reset_state(reset_partial_state=True)
    processes()
    precision = precision_of(config)
    if config.tensorboard and not is_tensorboard_available():
        raise MissingBackend("--tensorboard needs tensorboardX; pip install 'kdc-edge[train]'")
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=folder if config.tensorboard else None,
        )
    except ValueError as error:
        raise UsageError(f"--precision {precision}: {error}") from None
    settle(accelerator, config)
    if precision == "fp16" and accelerator.scaler is None:
        raise UsageError(
            f"--precision fp16: not on a {accelerator.device.type}, which would compute in float32; bf16 or no"
        )
    return accelerator


def precision_of(config: LoopConfig) -> str:
    """What `auto` is on this machine: where the hardware does not multiply bfloat16, float32 is faster."""
    if config.precision != "auto":
        return config.precision
    cuda = pick_device().type == "cuda"
    fast = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "no"


def check(config: LoopConfig, processes: int) -> None:
    """UsageError for settings that cannot be meant, before anything is trained."""
    check_numbers(config)
    parts = config.accumulate * processes
    if config.batch_size % parts:
        raise UsageError(
            f"a batch of {config.batch_size} does not divide into {parts} parts ({processes} processes, "
            f"{config.accumulate} accumulated calls)"
        )


def _run(
    trainer: Trainer, loss: Loss, path: Path, label: str, save_every: float, log_every: int, sample: Sampler | None
) -> None:
    """To the last step, or GateError."""
    saved, rollbacks = time.monotonic(), 0
    for means in steps(trainer, loss, label, log_every):
        if all(math.isfinite(value) for value in means.values()):
            rollbacks = 0
            if sample is not None and _sample_is_due(trainer, log_every):
                with trainer.averaged() as network:
                    if trainer.accelerator.is_main_process:
                        sample(network, trainer.step)
            if _any(trainer.accelerator, time.monotonic() - saved > save_every):
                trainer.save(path)
                saved = time.monotonic()
            continue
        rollbacks += 1
        accident = f"{label}: at step {trainer.step} not finite: {means}"
        attempt = trainer.attempt + 1
        if rollbacks == ROLLBACKS or not trainer.load(path):
            raise GateError(f"{accident}; lower --learning-rate")
        trainer.attempt = attempt
        print(f"{accident}; back to step {trainer.step}, with other random draws", file=sys.stderr)


def _sample_is_due(trainer: Trainer, log_every: int) -> bool:
    """Whether the last interval reached a multiple of `sample_every`."""
    every = trainer.config.sample_every
    return bool(every) and trainer.step % every < log_every


def _any(accelerator: Accelerator, due: bool) -> bool:
    """Whether one of the processes says so: their clocks differ, and what all take part in begins together."""
    return bool(accelerator.reduce(torch.tensor(float(due), device=accelerator.device), "sum"))


def steps(trainer: Trainer, loss: Loss, label: str, log_every: int) -> Iterator[dict[str, float]]:
    """Run to the end, yielding the means of every `log_every` steps; tensors are read only then."""
    config, accelerator = trainer.config, trainer.accelerator
    sums: dict[str, Tensor] = {}
    count, started = 0, _now()
    hidden = (
        None if accelerator.is_main_process and parent_process() is None else True
    )  # None: where stderr is no terminal
    with tqdm(total=config.steps, initial=trainer.step, desc=label, unit="step", disable=hidden) as bar:
        while trainer.step < config.steps:
            found = trainer.advance(loss)
            sums = {n: sums.get(n, 0) + v for n, v in found.items()}
            count += 1
            bar.update(trainer.step - bar.n)
            if count == log_every or trainer.step == config.steps:
                stacked = accelerator.reduce(torch.stack(list(sums.values())) / count, "mean").tolist()
                means = dict(zip(sums, stacked, strict=True))
                now = _now()
                _log(trainer, means, count, bar, *(end - start for start, end in zip(started, now, strict=True)))
                sums, count, started = {}, 0, now
                yield means


def _now() -> tuple[float, float]:
    """Seconds on the clock, and of this process on all cores."""
    return time.monotonic(), time.process_time()


def _log(trainer: Trainer, means: dict[str, float], count: int, bar: Any, seconds: float, cpu_seconds: float) -> None:
    terms = {name: value for name, value in means.items() if name != "norm"}
    images = count * trainer.config.batch_size
    trainer.history.seconds += seconds
    trainer.history.cpu_seconds += cpu_seconds
    trainer.history.images += images
    trainer.history.add(trainer.step, terms)
    bar.set_postfix(loss=f"{sum(terms.values()):.4f}", images_s=f"{images / seconds:.0f}")
    trainer.accelerator.log({**means, "images_per_s": images / seconds}, step=trainer.step)
