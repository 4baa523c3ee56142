"""The one training loop: any module, any loss, resumable after a kill.

A run is a folder: `state.safetensors` (parameters, optimizer moments, EMA), written atomically, with the run's key and
loss history in its metadata. The randomness of step `i` comes from a generator seeded with `(seed, i)`, so a run that was
killed continues exactly as if it had not been, and nothing about random state is ever stored.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from kdc_edge.errors import GateError, UsageError
from kdc_edge.files import replacing
from train.muon import Muon
from train.recipes import LoopConfig

Loss = Callable[[int, torch.Generator], Mapping[str, Tensor]]


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
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it; elsewhere it is slower than float32."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def generator_at(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one step: a function of (seed, step) alone."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns, its random start a function of `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def cosine(step: int, config: LoopConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
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

    def __init__(self, module: nn.Module, config: LoopConfig, key: str) -> None:
        self.module, self.config, self.key = module, config, key
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizers = build_optimizers(self.params.values(), config)
        self.average = {n: p.detach().clone() for n, p in self.params.items()} if config.ema else {}
        self.step = 0
        self.history = History()

    def update(self, loss: Tensor) -> None:
        loss.backward()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.params.values(), self.config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * cosine(self.step, self.config)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.average:
            # The early average forgets quickly, so that it never holds on to the random start.
            weight = 1 - min(self.config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.params.values()], weight)

    def finish(self) -> None:
        """Leave the averaged weights in the module."""
        with torch.no_grad():
            for name, value in self.average.items():
                self.params[name].copy_(value)
        self.module.eval().requires_grad_(False)

    def state_of(self, param: nn.Parameter) -> dict[str, Tensor]:
        """The moments that `param`'s optimizer keeps."""
        owner = next(o for o in self.optimizers if any(param is p for p in o.param_groups[0]["params"]))
        return owner.state[param]

    def save(self, path: Path) -> None:
        tensors = {f"param/{n}": p.detach().contiguous() for n, p in self.params.items()}
        tensors |= {f"ema/{n}": p.contiguous() for n, p in self.average.items()}
        for name, param in self.params.items():
            for moment, value in self.state_of(param).items():
                tensors[f"{moment}/{name}"] = value.detach().contiguous()
        about = {"key": self.key, "step": str(self.step), "history": json.dumps(asdict(self.history))}
        with replacing(path) as temporary:
            save_file(tensors, temporary, about)

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            if about["key"] != self.key:
                raise UsageError(
                    f"{path} belongs to a run with other settings or data; choose another --run-dir or delete it"
                )
            moments: dict[str, dict[str, Tensor]] = {}
            with torch.no_grad():
                for entry in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    kind, name = entry.split("/", 1)
                    value = file.get_tensor(entry)
                    if kind == "param":
                        self.params[name].copy_(value)
                    elif kind == "ema":
                        self.average[name].copy_(value)
                    else:
                        moments.setdefault(name, {})[kind] = value
        for name, state in moments.items():
            self.state_of(self.params[name]).update(
                {kind: value if kind == "step" else value.to(self.params[name]) for kind, value in state.items()}
            )
        self.step = int(about["step"])
        self.history = History(**json.loads(about["history"]))


def fit(
    module: nn.Module,
    loss: Loss,
    config: LoopConfig,
    state: Path,
    *,
    key: Mapping[str, Any],
    label: str,
    save_every: float = 120.0,
    log_every: int = 25,
) -> History:
    """Train `module` in place, from `state` if it exists; afterwards it holds the averaged weights, frozen.

    `loss(step, generator)` returns the weighted terms; their sum is minimised. `key` is everything that makes this run
    what it is; a `state` with another key is refused (UsageError). A loss that is not finite raises GateError.
    """
    digest = hashlib.sha256(
        json.dumps({**key, "loop": asdict(config)}, sort_keys=True, default=str).encode()
    ).hexdigest()
    trainer = Trainer(module.train(), config, digest)
    if state.exists():
        trainer.load(state)
    saved = time.monotonic()
    for terms in steps(trainer, loss, label, log_every):
        if not all(math.isfinite(value) for value in terms.values()):
            raise GateError(f"{label}: loss at step {trainer.step} is {terms}; lower --learning-rate")
        if time.monotonic() - saved > save_every:
            trainer.save(state)
            saved = time.monotonic()
    trainer.save(state)
    trainer.finish()
    return trainer.history


def steps(trainer: Trainer, loss: Loss, label: str, log_every: int) -> Iterator[dict[str, float]]:
    """Run to the end, yielding the mean terms of every `log_every` steps; tensors are read only then."""
    config, history = trainer.config, trainer.history
    device = next(iter(trainer.params.values())).device
    sums: dict[str, Tensor] = {}
    count, started = 0, time.monotonic()
    with tqdm(total=config.steps, initial=trainer.step, desc=label, unit="step", disable=None) as bar:
        while trainer.step < config.steps:
            with autocast(device):
                terms = loss(trainer.step, generator_at(config.seed, trainer.step))
            trainer.update(torch.stack(list(terms.values())).sum())
            sums = {n: sums.get(n, torch.zeros((), device=device)) + v.detach().float() for n, v in terms.items()}
            count += 1
            bar.update()
            if count == log_every or trainer.step == config.steps:
                means = {n: v.item() / count for n, v in sums.items()}
                now = time.monotonic()
                history.seconds += now - started
                history.images += count * config.batch_size
                history.add(trainer.step, means)
                bar.set_postfix(
                    loss=f"{sum(means.values()):.4f}", images_s=f"{count * config.batch_size / (now - started):.0f}"
                )
                sums, count, started = {}, 0, now
                yield means
