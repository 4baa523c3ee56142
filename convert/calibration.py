"""What a component meets while its model draws: the inputs that quantisation is calibrated on.

Every prompt is drawn by PyTorch in fp32 with the bundle's own sampler, steps and guidance. Of each drawing the U-Net's calls
are kept at `TIMESTEPS` places of the trajectory, shifted from prompt to prompt so that all places are met. Calls go to
disk as they are made and are read one at a time: memory does not grow with their number.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.schemes import Scheme, calibrated, prompted
from kdc_edge import schema
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from kdc_edge.images import to_sample
from kdc_edge.manifest import PipelineSpec
from kdc_edge.pipeline import COMPONENTS, Pipeline
from kdc_edge.runtimes import Runtime
from kdc_edge.spec import evaluations
from kdc_edge.tokenizer import Tokenizer

TIMESTEPS = 4  # kept of every drawing
SEED = 1_000_000  # drawings are seeded from here on, apart from the golden ones
# drawn to look for overflow, where no file is given
PROBED = ["red apple", "sailboat", "flag: Norway", "smiling face with sunglasses"]


@dataclass(frozen=True)
class Calls:
    """Recorded inputs of one component, in a folder; `but` are numbers that are passed over."""

    folder: Path
    but: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._read(set(range(len(self._paths()))) - self.but)

    def __len__(self) -> int:
        return len(self._paths()) - len(self.but)

    def some(self, count: int) -> list[dict[str, np.ndarray]]:
        """At most `count` of them, spread evenly from the first to the last."""
        return list(self._read(self._spread(count)))

    def others(self, count: int) -> "Calls":
        """All but those."""
        return replace(self, but=self.but | self._spread(count))

    def apart(self, count: int) -> "tuple[Calls, list[dict[str, np.ndarray]]]":
        """Calls to fit to, and `count` others to judge by; where there are few, those are among the first, too."""
        return self.others(count) if len(self) >= 2 * count else self, self.some(count)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _read(self, numbers: set[int]) -> Iterator[dict[str, np.ndarray]]:
        from safetensors.numpy import load_file

        yield from (load_file(path) for number, path in enumerate(self._paths()) if number in numbers)

    def _spread(self, count: int) -> set[int]:
        left = np.array([number for number in range(len(self._paths())) if number not in self.but])
        places = np.linspace(0, len(left) - 1, min(count, len(left))).round().astype(int)
        return set(left[places].tolist())


class Saver:
    """A runtime that answers as another one does and saves the inputs of the calls that `keeps` says yes to."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.runtime, self.ports, self.folder = runtime, runtime.ports, folder
        self.saved = 0
        self.keep = True

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        from safetensors.numpy import save_file

        if self.keep:
            arrays = {name: np.array(array, order="C") for name, array in inputs.items()}
            save_file(arrays, self.folder / f"{self.saved:06}.safetensors")
            self.saved += 1
        return self.runtime(**inputs)

    def close(self) -> None:
        self.runtime.close()


def prompts_for(schemes: Iterable[Scheme], path: Path | None, count: int, what: str) -> list[str]:
    """What is drawn for them, nothing if none of them looks. Raises UsageError where a file is wanted and not given."""
    schemes = list(schemes)
    if not any(map(calibrated, schemes)):
        return []
    if path is None and not any(map(prompted, schemes)):
        return PROBED
    return read_prompts(path, count, what)


def read_prompts(path: Path | None, count: int, what: str) -> list[str]:
    """The first `count` lines of a text file. Raises UsageError where there is none."""
    if path is None:
        raise UsageError(f"{what} is calibrated on what the model draws; --calibration FILE, a prompt on each line")
    if count < 1:
        raise UsageError(f"--calibration-prompts is {count}; one at least is drawn")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--calibration {path}: {error}; a UTF-8 text file with a prompt on each line is wanted"
        ) from None
    prompts = [line.strip() for line in lines if line.strip()][:count]
    if not prompts:
        raise UsageError(f"--calibration {path} has no prompt; write one on each line")
    return prompts


def record(checkpoint: Path, spec: PipelineSpec, prompts: list[str], folder: Path) -> dict[str, Any]:
    """Draws and saves into `folder`/COMPONENT; returns what the manifest says of it."""
    from tqdm import tqdm

    from kdc_edge.torch_ref.runtime import open_runtime

    opened = Checkpoint.open(checkpoint)
    savers = {name: Saver(open_runtime(opened, name), folder / name) for name in COMPONENTS}
    tokenizer = Tokenizer.open(checkpoint / "tokenizer", spec.tokens)
    with Pipeline(spec, tokenizer, dict[str, Runtime](savers)) as pipe:
        for number, prompt in enumerate(tqdm(prompts, desc="calibrating", unit="prompt", disable=None)):
            kept = places(number, evaluations(spec))
            unet = savers["unet"]
            unet.keep = 0 in kept
            for frame in pipe.stream(prompt, seed=SEED + number):
                unet.keep = frame.index + 1 in kept
            _save_picture(np.asarray(frame.image()), folder / "vae_encoder", number)
    return {"prompts": len(prompts), "calls": savers["unet"].saved, "sha256": digest(spec, prompts)}


def _save_picture(pixels: np.ndarray, folder: Path, number: int) -> None:
    """What the autoencoder's other half could be asked."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    save_file({"sample": np.ascontiguousarray(to_sample(pixels[None]))}, folder / f"{number:06}.safetensors")


def places(number: int, calls: int) -> set[int]:
    """Of the calls that drawing `number` takes, those that are kept."""
    count = min(TIMESTEPS, calls)
    return {(number + place * calls // count) % calls for place in range(count)}


def digest(spec: PipelineSpec, prompts: list[str]) -> str:
    """SHA-256 of what decides the calls, beside the checkpoint: prompts, seeds, sampler, steps and guidance."""
    rules: Mapping[str, Any] = {
        "prompts": prompts,
        "seed": SEED,
        "timesteps": TIMESTEPS,
        "pipeline": schema.dump(spec),
    }
    return hashlib.sha256(schema.canonical(rules)).hexdigest()
