"""One step of training: the share of a batch that a process takes, the optimizers, the averages, and the state on disk.

The randomness of step `i` comes from a generator seeded with `(seed, i)`, and every process draws the whole batch and keeps
its own rows: a run that was killed goes on exactly as if it had not been, and two processes learn what one would.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from kdc_edge.errors import UsageError
from train import sharding, state
from train.muon import Muon
from train.recipes import LoopConfig

OTHER = "belongs to a run with other settings or data; choose another --run-dir or delete it"
MOMENTS: dict[type, int] = {torch.optim.AdamW: 2, Muon: 1}  # tensors of a parameter's size that the optimizer keeps


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
    averaged: Callable[..., Any] | None = None
    """The network in training, with its averaged weights; every process asks it."""

    def rows(self, batch_size: int) -> slice:
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


Loss = Callable[[nn.Module, Part], Mapping[str, Tensor]]


@dataclass
class History:
    """Mean loss terms per logged interval, and what the run cost."""

    steps: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process, all its threads: what other work on the machine does not lengthen."""
    images: int = 0

    def add(self, step: int, means: Mapping[str, float]) -> None:
        self.steps.append(step)
        for name, value in means.items():
            self.terms.setdefault(name, []).append(value)


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

    def __init__(
        self, module: nn.Module, config: LoopConfig, key: str, accelerator: Accelerator, recipe: str = ""
    ) -> None:
        self.module, self.config, self.key, self.accelerator = module, config, key, accelerator
        self.recipe = recipe  # the key's part that is known before the data is read
        self.plain = sharding.outline(module) if accelerator.is_fsdp2 else None
        if self.plain is not None:
            module.to(memory_format=torch.contiguous_format)  # all that FSDP divides
        self.optimizers = build_optimizers((p for p in module.parameters() if p.requires_grad), config)
        self.network, *_ = accelerator.prepare(module, *self.optimizers)
        self.weights = dict(module.named_parameters())
        self.params = {n: p for n, p in self.weights.items() if p.requires_grad}
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
                averaged=self.answer_of_average,
            )
            last = call == config.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.network):
                with accelerator.autocast():
                    terms = loss(self.network, part)
                accelerator.backward(torch.stack(list(terms.values())).sum() / config.accumulate)
            sums = {n: sums.get(n, 0) + v.detach().float() / config.accumulate for n, v in terms.items()}
        norm = sharding.whole(accelerator.clip_grad_norm_(self.params.values(), config.clip or math.inf))
        self._step(norm)
        self.step += 1
        if self.average:
            # The early average forgets quickly, so that it never holds on to the random start.
            weight = 1 - min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.params.values()], weight)
        # with a loss scale, a gradient that is not finite is skipped and is no accident
        return sums if accelerator.scaler is not None else sums | {"norm": norm.detach().float()}

    def _step(self, norm: Tensor) -> None:
        """Of every optimizer; with a loss scale, of all or none, and the scale is adapted once."""
        scaler = self.accelerator.scaler  # None but in fp16; by now `clip_grad_norm_` has undone the scale
        finite = scaler is None or bool(norm.isfinite())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * share_of_rate(self.step, self.config)
            if scaler is None:
                optimizer.step()
            elif finite:
                scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()

    def averages(self) -> dict[str, Tensor]:
        """Whole weights of the averaged network; every process asks."""
        return {n: sharding.whole(self.average.get(n, p).detach()) for n, p in self.weights.items()}

    def answer_of_average(self, *inputs: Any) -> Any:
        """`Part.averaged`."""
        return functional_call(self.module if self.plain is None else self.plain, self.averages(), inputs)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with its averaged weights, whole, for a while; every process asks."""
        if self.plain is not None:
            yield sharding.with_weights(self.plain, self.averages())
            return
        self.swap()
        yield self.module
        self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for name, value in self.average.items():
            kept = self.params[name].clone()
            self.params[name].copy_(value)
            value.copy_(kept)

    def finish(self) -> None:
        """Leave the averaged weights in the module, without what was wrapped around it."""
        if self.plain is None:
            self.swap()
            self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        else:
            sharding.reunite(self.module, self.plain, self.averages())
        self.module.eval().requires_grad_(False)

    def state_of(self, param: nn.Parameter) -> dict[str, Tensor]:
        """The moments that `param`'s optimizer keeps."""
        owner = next(o for o in self.optimizers if any(param is p for p in o.param_groups[0]["params"]))
        return owner.state[param]

    def bytes(self) -> int:
        """Of a state on disk: weights, averages and moments."""
        moments = [(p, MOMENTS[type(o)]) for o in self.optimizers for p in o.param_groups[0]["params"]]
        return sum(p.nbytes * (1 + bool(self.average) + count) for p, count in moments)

    def save(self, path: Path) -> None:
        """By the main process; the others have the same weights, or their shares to give."""
        tensors = {f"param/{n}": p for n, p in self.params.items()} | {f"ema/{n}": p for n, p in self.average.items()}
        for name, param in self.params.items():
            tensors |= {f"{moment}/{name}": value for moment, value in self.state_of(param).items()}
        tensors = sharding.gathered(tensors, keep=self.accelerator.is_main_process)
        if not self.accelerator.is_main_process:
            return
        about = {"key": self.key, "recipe": self.recipe, "step": str(self.step), "attempt": str(self.attempt)}
        if self.accelerator.scaler is not None:
            about["scaler"] = json.dumps(self.accelerator.scaler.state_dict())
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
            raise UsageError(f"{path} {OTHER}")
        moments: dict[str, dict[str, Tensor]] = {}
        for entry, value in tensors.items():
            kind, name = entry.split("/", 1)
            laid_out = sharding.laid_out_as(self.params[name], value)
            if kind == "param":
                self.params[name].copy_(laid_out)
            elif kind == "ema":
                self.average[name].copy_(laid_out)
            else:
                moments.setdefault(name, {})[kind] = laid_out
        for name, param in self.params.items():
            kept = self.state_of(param)
            kept.clear()
            kept.update(moments.get(name, {}))
        self.step, self.attempt = int(about["step"]), int(about["attempt"])
        self.history = History(**json.loads(about["history"]))
        if self.accelerator.scaler is not None and "scaler" in about:
            self.accelerator.scaler.load_state_dict(json.loads(about["scaler"]))
        return True
