"""The one training loop: any module, any loss, on one process or many, resumable after a kill.

    accelerate launch --num_processes 2 -m train.distill …

Hugging Face accelerate places, wraps and scales; this module says what a step is. The randomness of step `i` comes from a
generator seeded with `(seed, i)`, and every process draws the whole batch and keeps its own rows: a run that was killed
goes on exactly as if it had not been, and two processes learn what one would.
"""

import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, is_tensorboard_available
from torch import Tensor, nn
from tqdm import tqdm

from kdc_edge.errors import GateError, MissingBackend, UsageError
from train import state
from train.muon import Muon
from train.recipes import LoopConfig

OUTSIDE = ("checkpointing", "tensorboard", "sample_every")  # settings that change nothing that is learned
ROLLBACKS = 3  # in a row, then the run gives up


@dataclass(frozen=True)
class Part:
    """The share of one step's batch that one process takes at a time."""

    step: int
    index: int
    count: int
    """Parts of the batch: processes times accumulated calls."""
    generator: torch.Generator
    """In the same state for every part of a step: each draws the whole batch and keeps `rows`."""
    device: torch.device
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """The averaged weights, by the names of the module's parameters."""

    def rows(self, batch_size: int) -> slice:
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


Loss = Callable[[nn.Module, Part], Mapping[str, Tensor]]
Sampler = Callable[[nn.Module, int], None]


@dataclass
class History:
    """Mean loss terms per logged interval, and what the run cost."""

    steps: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0

    def add(self, step: int, means: Mapping[str, float]) -> None:
        self.steps.append(step)
        for name, value in means.items():
            self.terms.setdefault(name, []).append(value)


def pick_device() -> torch.device:
    """This process's own: its GPU if there is one."""
    return PartialState().device


def is_main() -> bool:
    """Whether this process writes what all have learned."""
    return PartialState().is_main_process


def generator_at(seed: int, step: int, attempt: int = 0) -> torch.Generator:
    """The generator of one step: a function of these numbers alone."""
    name = f"{seed}/{step}/{attempt}" if attempt else f"{seed}/{step}"
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns, its random start a function of `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def share_of_rate(step: int, config: LoopConfig) -> float:
    """Of the learning rate, at a step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizers(params: Iterable[nn.Parameter], config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or for what has one dimension where Muon takes the rest."""
    matrices, others = [], []
    for param in params:
        (matrices if config.optimizer == "muon" and param.ndim >= 2 else others).append(param)
    rate, decay = config.learning_rate, config.weight_decay
    found: list[torch.optim.Optimizer] = []
    if others:
        found.append(torch.optim.AdamW(others, lr=rate, weight_decay=decay, betas=(0.9, 0.99), fused=True))
    if matrices:
        found.append(Muon(matrices, lr=rate, weight_decay=decay))
    return found


class Trainer:
    """Parameters, moments, averages and step of one run; `fit` drives it."""

    def __init__(self, module: nn.Module, config: LoopConfig, key: str, accelerator: Accelerator) -> None:
        self.module, self.config, self.key, self.accelerator = module, config, key, accelerator
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizers = build_optimizers(self.params.values(), config)
        self.network, *self.wrapped = accelerator.prepare(module, *self.optimizers)
        self.average = {n: p.detach().clone() for n, p in self.params.items()} if config.ema else {}
        self.step = self.attempt = 0
        self.history = History()

    def advance(self, loss: Loss) -> dict[str, Tensor]:
        """One step; its loss terms and the norm of its gradient, not yet read from the device."""
        config, accelerator = self.config, self.accelerator
        sums: dict[str, Tensor] = {}
        for call in range(config.accumulate):
            part = Part(
                step=self.step,
                index=accelerator.process_index * config.accumulate + call,
                count=accelerator.num_processes * config.accumulate,
                generator=generator_at(config.seed, self.step, self.attempt),
                device=accelerator.device,
                average=self.average,
            )
            last = call == config.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.network):
                with accelerator.autocast():
                    terms = loss(self.network, part)
                accelerator.backward(torch.stack(list(terms.values())).sum() / config.accumulate)
            sums = {n: sums.get(n, 0) + v.detach().float() / config.accumulate for n, v in terms.items()}
        norm = accelerator.clip_grad_norm_(self.params.values(), config.clip or math.inf)
        for optimizer in self.wrapped:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * share_of_rate(self.step, config)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.average:
            # The early average forgets quickly, so that it never holds on to the random start.
            weight = 1 - min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.params.values()], weight)
        # with a loss scale, a gradient that is not finite is skipped and is no accident
        return sums if accelerator.scaler is not None else sums | {"norm": norm.detach().float()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for name, value in self.average.items():
            kept = self.params[name].clone()
            self.params[name].copy_(value)
            value.copy_(kept)

    def finish(self) -> None:
        """Leave the averaged weights in the module, without what was wrapped around it."""
        self.swap()
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        self.module.eval().requires_grad_(False)

    def state_of(self, param: nn.Parameter) -> dict[str, Tensor]:
        """The moments that `param`'s optimizer keeps."""
        owner = next(o for o in self.optimizers if any(param is p for p in o.param_groups[0]["params"]))
        return owner.state[param]

    def save(self, path: Path) -> None:
        """By the main process; the others have the same weights."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"param/{n}": p for n, p in self.params.items()} | {f"ema/{n}": p for n, p in self.average.items()}
        for name, param in self.params.items():
            tensors |= {f"{moment}/{name}": value for moment, value in self.state_of(param).items()}
        about = {"key": self.key, "step": str(self.step), "attempt": str(self.attempt)}
        state.save(path, tensors, about | {"history": json.dumps(asdict(self.history))})

    @torch.no_grad()
    def load(self, path: Path) -> bool:
        """Whether there was a state to go on from. Raises UsageError for one of another run."""
        self.accelerator.wait_for_everyone()
        found = state.load(path)
        if found is None:
            return False
        tensors, about = found
        if about["key"] != self.key:
            raise UsageError(
                f"{path} belongs to a run with other settings or data; choose another --run-dir or delete it"
            )
        moments: dict[str, dict[str, Tensor]] = {}
        for entry, value in tensors.items():
            kind, name = entry.split("/", 1)
            if kind == "param":
                self.params[name].copy_(value)
            elif kind == "ema":
                self.average[name].copy_(value)
            else:
                moments.setdefault(name, {})[kind] = value.to(self.params[name].device)
        for name, param in self.params.items():
            kept = self.state_of(param)
            kept.clear()
            kept.update(moments.get(name, {}))
        self.step, self.attempt = int(about["step"]), int(about["attempt"])
        self.history = History(**json.loads(about["history"]))
        return True


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
    settings = {name: value for name, value in asdict(config).items() if name not in OUTSIDE}
    digest = hashlib.sha256(json.dumps({**key, "loop": settings}, sort_keys=True, default=str).encode()).hexdigest()
    if config.checkpointing:
        module.enable_gradient_checkpointing()
    trainer = Trainer(module.train(), config, digest, accelerator)
    need = 3 * 5 * sum(p.nbytes for p in trainer.params.values())  # weights, average, moments; two files and a new one
    with state.reserved(path.parent, need) if accelerator.is_main_process else contextlib.nullcontext():
        trainer.load(path)
        if config.tensorboard:
            accelerator.init_trackers(label)
        _run(trainer, loss, path, label, save_every, log_every, sample)
        trainer.save(path)
        accelerator.end_training()
    trainer.finish()
    return trainer.history


def launch(config: LoopConfig, folder: Path) -> Accelerator:
    """One process or, under `accelerate launch`, one of many."""
    precision = config.precision
    if precision == "auto":
        device = pick_device()
        # elsewhere bfloat16 is slower than float32
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "no"
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
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"{accelerator.distributed_type.value} divides the weights, which Muon and the averages need whole; "
            "launch plain processes (DDP)"
        )
    return accelerator


def check(config: LoopConfig, processes: int) -> None:
    """UsageError for settings that cannot be meant, before anything is trained."""
    for name in ("steps", "batch_size", "learning_rate", "accumulate"):
        if not getattr(config, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be above 0")
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
                trainer.swap()
                sample(trainer.module, trainer.step)
                trainer.swap()
            if time.monotonic() - saved > save_every:
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
    """For the main process, whether the last interval reached a multiple of `sample_every`."""
    every = trainer.config.sample_every
    return bool(every) and trainer.accelerator.is_main_process and trainer.step % every < log_every


def steps(trainer: Trainer, loss: Loss, label: str, log_every: int) -> Iterator[dict[str, float]]:
    """Run to the end, yielding the means of every `log_every` steps; tensors are read only then."""
    config, accelerator = trainer.config, trainer.accelerator
    sums: dict[str, Tensor] = {}
    count, started = 0, time.monotonic()
    hidden = None if accelerator.is_main_process else True  # None: hidden where stderr is no terminal
    with tqdm(total=config.steps, initial=trainer.step, desc=label, unit="step", disable=hidden) as bar:
        while trainer.step < config.steps:
            found = trainer.advance(loss)
            sums = {n: sums.get(n, 0) + v for n, v in found.items()}
            count += 1
            bar.update(trainer.step - bar.n)
            if count == log_every or trainer.step == config.steps:
                stacked = accelerator.reduce(torch.stack(list(sums.values())) / count, "mean").tolist()
                means = dict(zip(sums, stacked, strict=True))
                now = time.monotonic()
                _log(trainer, means, count, now - started, bar)
                sums, count, started = {}, 0, now
                yield means


def _log(trainer: Trainer, means: dict[str, float], count: int, seconds: float, bar: Any) -> None:
    terms = {name: value for name, value in means.items() if name != "norm"}
    images = count * trainer.config.batch_size
    trainer.history.seconds += seconds
    trainer.history.images += images
    trainer.history.add(trainer.step, terms)
    bar.set_postfix(loss=f"{sum(terms.values()):.4f}", images_s=f"{images / seconds:.0f}")
    trainer.accelerator.log({**means, "images_per_s": images / seconds}, step=trainer.step)
