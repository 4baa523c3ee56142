"""Test vectors for ports, beyond a bundle's golden ones: `python -m apps.vectors` writes apps/vectors.json.

    tokenizer  text, ids and tokens dropped, by emoji-64's vocabulary
    noise      per seed the first numbers, and the ones of a second draw
    samplers   x after each step, from noise of seed 3 times `start`, by the network below; per-step noise of seed 5

The network is tanh(0.7·x + 0.3·ramp + sin(timestep / 150)), the ramp rising from -1 to 1 over the COUNT numbers of x.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro

from kdc_edge import command, schema
from kdc_edge.denoise import from_network
from kdc_edge.files import replace_file
from kdc_edge.manifest import Betas
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import DEFAULT_BUNDLE
from kdc_edge.samplers import SAMPLERS
from kdc_edge.schedule import Schedule
from kdc_edge.tokenizer import Tokenizer

FILE = Path(__file__).parent / "vectors.json"
COUNT, START, PER_STEP = 12, 3, 5
PIECES = (
    "red", " apple", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "it's", "'ll", "'", "ΟΔΟΣ", "İ", " ", "\u00a0",
    "\x1c", "!!", "42", "½", "Ⅷ", "👍🏽", "🇳🇴", "e\u0301", "ﬁ", "中文", "א", "\u200d", "\ufeff", "ß", "_", "-", "\n", "Å",
)  # fmt: skip
CASES = [
    (Betas("scaled_linear", 0.00085, 0.012, 1000, "trailing", 1, True), "v_prediction", 4),
    (Betas("scaled_linear", 0.00085, 0.012, 1000, "leading", 1, False), "epsilon", 7),
    (Betas("linear", 0.0001, 0.02, 1000, "linspace", 0, True), "sample", 5),
]


def network(x: np.ndarray, timestep: float) -> np.ndarray:
    """Smooth, bounded, different in every element and at every timestep."""
    ramp = np.linspace(-1, 1, x.size).reshape(x.shape)
    return np.tanh(0.7 * x + 0.3 * ramp + math.sin(timestep / 150))


@dataclass(frozen=True)
class VectorsConfig:
    """Where to write."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = FILE
    """The file."""


def write(config: VectorsConfig) -> None:
    """Write the test vectors of the ports."""
    replace_file(config.output, text(make()).encode())


def text(made: dict[str, list[Any]]) -> str:
    """JSON, one vector a line."""
    blocks = (f'"{name}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]" for name, items in made.items())
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def make() -> dict[str, list[Any]]:
    samplers = [_sampler(name, *case) for name in SAMPLERS for case in CASES]
    return {"tokenizer": _texts(), "noise": [_noise(seed) for seed in (0, 1, 42, 2**32 - 1)], "samplers": samplers}


def _texts() -> list[Any]:
    state = np.random.RandomState(0)
    texts = ["", "very long " * 60] + ["".join(state.choice(PIECES, state.randint(1, 9))) for _ in range(120)]
    found = Tokenizer.open(DEFAULT_BUNDLE / "tokenizer", 77)(texts)
    rows = zip(texts, found.ids, found.dropped, strict=True)
    return [{"text": text, "ids": ids.tolist(), "dropped": dropped} for text, ids, dropped in rows]


def _noise(seed: int) -> dict[str, Any]:
    draw = gaussian(seed)
    return {"seed": seed, "first": draw((7,)).tolist(), "second": draw((1300,))[-3:].tolist()}


def _sampler(name: str, betas: Betas, predicts: str, steps: int) -> dict[str, Any]:
    schedule, sampler = Schedule.of(betas), SAMPLERS[name]
    plan = sampler.plan(schedule, steps)
    x = gaussian(START)((COUNT,)).astype(np.float64) * plan.start
    found = sampler.loop(from_network(network, predicts, schedule), x, plan, gaussian(PER_STEP))
    about = {"sampler": name, "steps": steps, "prediction_type": predicts, "betas": schema.dump(betas)}
    return {**about, "timesteps": plan.timesteps.tolist(), "x": [step.x.tolist() for step in found]}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    command.run(write, argv, prog="python -m apps.vectors")


if __name__ == "__main__":
    main()
