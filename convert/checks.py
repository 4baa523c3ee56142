"""What every converter does once its files are written: ask each component what PyTorch was asked, make the golden pictures,
hold both against their floors, keep what failed where that is wanted, say what came of it."""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert import golden, parity, pictures
from convert.parity import Call
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import GateError, MissingBackend
from kdc_edge.files import replace_dir
from kdc_edge.images import to_sample
from kdc_edge.pipeline import COMPONENTS
from kdc_edge.process import in_own_process
from kdc_edge.runtimes import Runtime, open_runtime
from kdc_edge.tokenizer import Tokenizer


@dataclass(frozen=True)
class Found:
    """What checking showed: parity of every component; of a whole model, golden runs of PyTorch and of the bundle.

    `broken` says why the bundle made no pictures.
    """

    parity: list[parity.Parity]
    reference: dict[str, np.ndarray]
    converted: golden.Trajectory | None
    broken: str | None = None

    @property
    def memory_mib(self) -> int | None:
        return None if self.converted is None else round(self.converted.peak_mib)

    def to_json(self) -> dict[str, Any]:
        compared = "not measured" if self.broken is None else f"broken: {self.broken}"
        if self.converted is not None:
            compared = pictures.compare(self.reference, self.converted.arrays)
        return {"parity": {result.component: result.to_json() for result in self.parity}, "picture": compared}

    def gate(self, allow_drift: bool) -> None:
        """Raises GateError; `allow_drift` is for decibels, NaN and a broken picture are never let through."""
        parity.gate(result for result in self.parity if not (allow_drift and result.finite))
        if self.broken is not None:
            raise GateError(f"the bundle's own pictures: {self.broken}; nothing was written")
        if self.converted is not None:
            pictures.gate(golden.PROMPTS, self.reference["images"], self.converted.arrays["images"])


def check(checkpoint: Checkpoint, bundle: Bundle, runtime: str, floors: Mapping[str, float]) -> Found:
    """Asks every component of a bundle what PyTorch was asked, then makes the golden pictures and writes their vectors."""
    from kdc_edge.torch_ref.runtime import open_runtime as open_reference

    spec = bundle.manifest.pipeline
    tokenizer = Tokenizer.open(bundle.path / "tokenizer", spec.tokens)
    components = {name: open_reference(checkpoint, name) for name in COMPONENTS}
    reference = golden.run(components, spec, tokenizer)
    if "vae_encoder" in bundle.manifest.components:
        reference.calls["vae_encoder"] = _encoded(open_reference(checkpoint, "vae_encoder"), reference.arrays["images"])
    for name, component in bundle.manifest.components.items():
        if any("width" in port.shape for port in component.inputs):
            reference.calls[name].append(
                _wider(reference.calls[name][-1], open_reference(checkpoint, name, any_size=True))
            )
    results = []
    for name in bundle.manifest.components:
        opened = open_runtime(bundle, name, runtime)
        results.append(parity.check(name, reference.calls[name], opened, floors[name]))
        opened.close()
    if not all(result.finite for result in results) or not bundle.manifest.components.keys() >= set(COMPONENTS):
        return Found(results, reference.arrays, None)
    try:
        converted = in_own_process("making the golden pictures", golden.run_bundle, bundle, runtime)
    except GateError as error:
        return Found(results, reference.arrays, None, str(error))
    golden.write(bundle.path, converted, golden.tolerances(converted, reference), spec, tokenizer)
    return Found(results, reference.arrays, converted)


def _encoded(reference: Runtime, pictures: np.ndarray) -> list[Call]:
    """The encoder's answers to uint8 pictures (P, H, W, 3)."""
    samples = [to_sample(picture[None]) for picture in pictures]
    return [Call({"sample": sample}, reference(sample=sample)) for sample in samples]


def _wider(call: Call, reference: Runtime) -> Call:
    """The call with latents beside themselves, for a component that takes any width."""
    ports = {port.name for port in reference.ports.inputs if "width" in port.shape}
    inputs = {name: np.concatenate([x, x], axis=-1) if name in ports else x for name, x in call.inputs.items()}
    return Call(inputs, reference(**inputs))


@contextlib.contextmanager
def keeping(wanted: bool, folder: Path, output: Path) -> Iterator[None]:
    """Where it is wanted, what a gate refuses stays beside the output."""
    try:
        yield
    except GateError as error:
        if not wanted:
            raise
        with replace_dir(failed(output), force=True) as kept:
            shutil.copytree(folder, kept, dirs_exist_ok=True)
        raise GateError(f"{error}, but for {failed(output)}") from None


def failed(output: Path) -> Path:
    """Where it stays."""
    return output.with_name(f"{output.resolve().name}.failed")


def say(result: Mapping[str, Any]) -> None:
    """What people want to know, on stderr."""
    for name, found in result["parity"].items():
        took = result["conversion"][name]
        print(
            f"{name:13} {parity.shown(found['snr_db']):>6} dB (floor {found['floor_db']:.0f}), "
            f"exported in {took['seconds']:.0f} s and {took['peak_mib']:.0f} MiB",
            file=sys.stderr,
        )
    print(f"{result['output_dir']}: {result['bytes'] / 2**20:.1f} MiB, bundle {result['id'][:12]}", file=sys.stderr)


def require_tools(packages: Iterable[str], extra: str) -> None:
    """Raises MissingBackend naming the extra that installs them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingBackend(f"{package} is not installed; pip install 'kdc-edge[{extra}]'")
