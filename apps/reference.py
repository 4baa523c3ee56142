"""The tokenizer, the noise and the samplers once more, in plain Python: the text to port them to another language from.

Slow, and tested equal to `kdc_edge`. Nothing is used here that another language lacks: integers, double-precision
floats, lists, dictionaries; of the standard library NFC, general categories and lower case of single characters.
Leaves out the networks: `denoise(x, sigma) -> x0` and `network(sample, timestep) -> prediction` are functions of lists.
"""

# x = x0 + sigma · noise, as a flat list of C·H·W numbers; n evaluations of the network

import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Vector = list[float]
Denoise = Callable[[Vector, float], Vector]

START, END = "<|startoftext|>", "<|endoftext|>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Tokenizer:
    """CLIP's byte-pair encoding over `vocab.json` and `merges.txt`."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        self.ranks = {(a, b): rank for rank, (a, b) in enumerate(line.split(" ") for line in merges)}
        self.tokens, self.letters = tokens, byte_letters()

    def __call__(self, text: str) -> tuple[list[int], int]:
        """`tokens` ids: start, the text, end, and end again as padding; and how many did not fit."""
        ids = self.encode(text)
        kept = [self.vocab[START], *ids[: self.tokens - 2], self.vocab[END]]
        return kept + [self.vocab[END]] * (self.tokens - len(kept)), max(0, len(ids) - self.tokens + 2)

    def encode(self, text: str) -> list[int]:
        """START and END, spelled just so, are one token each; what is between them is cut into words, each merged."""
        ids = []
        while text:
            where, name = min((text.find(name) % (len(text) + 1), name) for name in (START, END))
            pieces = [piece for word in words(text[:where]) for piece in self.merge(word)] + [name] * (
                where < len(text)
            )
            ids += [self.vocab.get(piece, self.vocab[END]) for piece in pieces]
            text = text[where + len(name) :]
        return ids

    def merge(self, word: str) -> list[str]:
        """One letter per UTF-8 byte, the last one marked; then the pair of lowest rank becomes one, until none is left."""
        pieces = [self.letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        while True:
            ranked = [(self.ranks.get((pieces[i], pieces[i + 1]), math.inf), i) for i in range(len(pieces) - 1)]
            rank, i = min(ranked, default=(math.inf, 0))
            if rank == math.inf:
                return pieces
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it is printable in Latin-1, else the next from U+0100 up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def words(text: str) -> Iterator[str]:
    """NFC; lower case of each character by itself; then contractions, runs of letters, single digits, runs of the rest."""
    text = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
    i = 0
    while i < len(text):
        special = next((name for name in (START, END) if text.startswith(name, i)), "")  # spelled in capitals
        short = next((name for name in CONTRACTIONS if text.startswith(name, i)), "")
        end = i + (len(special or short) or 1)
        if special:
            yield from (special[:2], special[2:-2], special[-2:])
        elif kind(text[i]) != "space":
            while not short and kind(text[i]) != "number" and end < len(text) and kind(text[end]) == kind(text[i]):
                end += 1
            yield text[i:end]
        i = end


def kind(c: str) -> str:
    """Unicode's White_Space, its categories L* and N*, and the rest."""
    if c in SPACES:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(c)[0], "other")


class Noise:
    """MT19937, seeded by init_genrand, and the polar method: numpy's RandomState. Store what it gives as float32."""

    def __init__(self, seed: int) -> None:
        self.state = [seed]
        for i in range(1, 624):
            self.state.append((1812433253 * (self.state[-1] ^ (self.state[-1] >> 30)) + i) & 0xFFFFFFFF)
        self.index, self.kept = 624, math.nan  # of each pair one number is kept for the next call

    def word(self) -> int:
        """32 bits."""
        if self.index == 624:
            self.twist()
        y, self.index = self.state[self.index], self.index + 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def twist(self) -> None:
        s = self.state
        for i in range(624):
            y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7FFFFFFF)
            s[i] = s[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
        self.index = 0

    def uniform(self) -> float:
        """In [0, 1), 53 bits."""
        return ((self.word() >> 5) * 67108864.0 + (self.word() >> 6)) / 9007199254740992.0

    def normal(self) -> float:
        if not math.isnan(self.kept):
            kept, self.kept = self.kept, math.nan
            return kept
        while True:
            a, b = 2 * self.uniform() - 1, 2 * self.uniform() - 1
            square = a * a + b * b
            if 0 < square < 1:
                factor = math.sqrt(-2 * math.log(square) / square)
                self.kept = factor * a
                return factor * b

    def __call__(self, count: int) -> Vector:
        return [self.normal() for _ in range(count)]


@dataclass(frozen=True)
class Betas:
    """The manifest's `pipeline.betas`."""

    schedule: str
    start: float
    end: float
    train_steps: int
    spacing: str
    steps_offset: int
    set_alpha_to_one: bool


class Schedule:
    """`sigmas` of the training steps, rising."""

    def __init__(self, betas: Betas) -> None:
        self.betas, self.sigmas = betas, []
        power = 2 if betas.schedule == "scaled_linear" else 1
        first, last, kept = betas.start ** (1 / power), betas.end ** (1 / power), 1.0
        for i in range(betas.train_steps):
            kept *= 1 - (first + (last - first) * i / (betas.train_steps - 1)) ** power
            self.sigmas.append(math.sqrt((1 - kept) / kept))
        self.final = 0.0 if betas.set_alpha_to_one else self.sigmas[0]

    def sigma(self, timestep: float) -> float:
        """Linear between two training steps."""
        low = min(max(int(timestep), 0), len(self.sigmas) - 2)
        weight = min(max(timestep - low, 0.0), 1.0)
        return self.sigmas[low] + (self.sigmas[low + 1] - self.sigmas[low]) * weight

    def timestep(self, sigma: float) -> float:
        """The inverse: what the network is told."""
        low = max(i for i in range(len(self.sigmas) - 1) if i == 0 or self.sigmas[i] <= sigma)
        weight = (sigma - self.sigmas[low]) / (self.sigmas[low + 1] - self.sigmas[low])
        return low + min(max(weight, 0.0), 1.0)

    def timesteps(self, steps: int) -> Vector:
        count = self.betas.train_steps
        if self.betas.spacing == "linspace":
            return [(steps - 1 - i) * ((count - 1) / max(steps - 1, 1)) for i in range(steps)]
        if self.betas.spacing == "trailing":
            return [round(count - i * (count / steps)) - 1.0 for i in range(steps)]
        return [(steps - 1 - i) * (count // steps) + self.betas.steps_offset + 0.0 for i in range(steps)]


@dataclass(frozen=True)
class Plan:
    """Evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; x begins as noise · start."""

    timesteps: Vector
    sigmas: Vector
    sources: Vector
    targets: Vector
    start: float


def plan(sampler: str, schedule: Schedule, steps: int) -> Plan:
    """`round` is to the even number at a half."""
    stride, spacing = schedule.betas.train_steps // steps, schedule.betas.spacing
    if sampler == "lcm":  # some of the 50 that consistency models are distilled with
        spaced = [(50 - i * 50 // steps) * (schedule.betas.train_steps // 50) - 1.0 for i in range(steps)]
    else:
        more = sampler == "dpmpp_2m" and spacing != "trailing"
        spaced = schedule.timesteps(steps + more)[:steps]
    if sampler != "euler":
        spaced = [float(round(t)) for t in spaced]
    if sampler == "pndm":
        spaced[1:1] = spaced[1:2]  # the second one twice
    sigmas = [schedule.sigma(t) for t in spaced]
    targets, sources = [*sigmas[1:], 0.0], list(sigmas)
    if sampler in ("ddim", "pndm"):
        targets = [schedule.sigma(t - stride) if t >= stride else schedule.final for t in spaced]
    if sampler == "pndm" and len(spaced) > 1:
        sources[1], targets[1] = schedule.sigma(spaced[1] + stride), sigmas[1]
    plain = sampler == "euler" and spacing != "leading"
    return Plan(spaced, sigmas, sources, targets, sigmas[0] if plain else math.hypot(1, sigmas[0]))


# Samplers: x after each step, at noise level targets[i]; the last one is the picture


def denoiser(network: Callable[[Vector, float], Vector], predicts: str, schedule: Schedule) -> Denoise:
    """The network sees x / √(1 + sigma²), and predicts epsilon, v or x0. Under guidance: x0 = a + (b - a) · guidance."""

    def denoise(x: Vector, sigma: float) -> Vector:
        size = math.hypot(1, sigma)
        out = network(mix((1 / size, x)), schedule.timestep(sigma))
        keep, remove = {"epsilon": (1, sigma), "v_prediction": (1 / size**2, sigma / size), "sample": (0, -1)}[predicts]
        return mix((keep, x), (-remove, out))

    return denoise


def mix(*terms: tuple[float, Vector]) -> Vector:
    """The sum of number · vector."""
    numbers, vectors = zip(*terms, strict=True)
    return [sum(n * v for n, v in zip(numbers, values, strict=True)) for values in zip(*vectors, strict=True)]


def moved(x: Vector, level: float, sigma: float) -> Vector:
    """The sample whose unit-variance form at `sigma` is that of `x` at `level`."""
    return mix((math.hypot(1, sigma) / math.hypot(1, level), x))


def euler(denoise: Denoise, x: Vector, plan: Plan, noise: Noise) -> Iterator[Vector]:
    level = plan.sigmas[0]
    for sigma, target in zip(plan.sigmas, plan.targets, strict=True):
        x = moved(x, level, sigma)
        step = (target - sigma) / sigma
        x, level = mix((1 + step, x), (-step, denoise(x, sigma))), target
        yield x


def dpmpp_2m(denoise: Denoise, x: Vector, plan: Plan, noise: Noise) -> Iterator[Vector]:
    previous, h_previous = None, 0.0
    for sigma, target in zip(plan.sigmas, plan.targets, strict=True):
        ahead = x0 = denoise(x, sigma)
        if target > 0:
            h = math.log(sigma / target)
            if previous is not None:
                ahead = mix((1 + 0.5 * h / h_previous, x0), (-0.5 * h / h_previous, previous))
            previous, h_previous = x0, h
        x = mix((target / sigma, x), (1 - target / sigma, ahead))
        yield x


def pndm(denoise: Denoise, x: Vector, plan: Plan, noise: Noise) -> Iterator[Vector]:
    weights = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    slopes, first, level = [], x, plan.sigmas[0]  # slopes: newest first
    for i, (sigma, source, target) in enumerate(zip(plan.sigmas, plan.sources, plan.targets, strict=True)):
        x = moved(x, level, sigma)
        slope = mix((1 / sigma, x), (-1 / sigma, denoise(x, sigma)))
        if i == 1:
            slope = mix((0.5, slope), (0.5, slopes[0]))
            x = moved(first, plan.sigmas[0], source)
        else:
            slopes = [slope, *slopes[:3]]
            slope = mix(*zip(weights[len(slopes) - 1], slopes, strict=True))
        x, level = mix((1, x), (target - source, slope)), target
        yield x


def lcm(denoise: Denoise, x: Vector, plan: Plan, noise: Noise) -> Iterator[Vector]:
    for timestep, sigma, target in zip(plan.timesteps, plan.sigmas, plan.targets, strict=True):
        scaled = timestep * 10
        skip, out = 0.25 / (scaled * scaled + 0.25), scaled / math.hypot(scaled, 0.5)
        x = mix((out, denoise(x, sigma)), (skip / math.hypot(1, sigma), x))
        if target > 0:
            x = mix((1, x), (target, noise(len(x))))
        yield x


SAMPLERS = {"euler": euler, "ddim": euler, "dpmpp_2m": dpmpp_2m, "pndm": pndm, "lcm": lcm}
