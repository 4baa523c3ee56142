"""A program with every kind of weight, converted once for each target in a second, and the tiny U-Net's packages."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")

from convert import checks, coreml
from convert.apple.program import convert, mil_name
from kdc_edge import machine
from kdc_edge.runtimes.apple import PACKAGES, RESOURCES
from kdc_edge.torch_ref.quiet import silent
from tests.convert.apple.toy import ABOUT, PORTS, SETTINGS, Wrapped


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small palettes are found before a process has started; test_palettes asks for two."""
    monkeypatch.setattr(machine, "cores", lambda: 1)


@pytest.fixture(scope="module")
def toy() -> Callable[[str], tuple[Any, nn.Module, dict[str, str]]]:
    """`toy(target)`: the program, the network, and the names of its weights; the program may be compressed many times."""
    made: dict[str, Any] = {}
    network = Wrapped().eval()

    def make(target: str) -> tuple[Any, nn.Module, dict[str, str]]:
        if target not in made:
            with silent(), torch.no_grad():
                traced = torch.jit.trace(network, torch.zeros(1, 64), check_trace=False)
                made[target] = convert(traced, PORTS, replace(SETTINGS, target=target))
        return made[target], network, {mil_name(name): name for name, _ in network.model.named_parameters()}

    return make


@pytest.fixture(scope="session")
def coreml_bundle(shared: Callable[[str, Callable[[Path], object]], Path], tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint as an fp16 bundle for ios17, all in this process."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for module in (coreml, checks):
                patch.setattr(module, "in_own_process", lambda _, fn, *args: fn(*args))
            about = {"author": ABOUT.author, "licence": ABOUT.licence, "version": ABOUT.version}
            coreml.convert(coreml.CoremlConfig(tiny_checkpoint, folder, components=tuple(PACKAGES), **about))

    return shared("tiny-coreml", make)


@pytest.fixture(scope="session")
def packages(coreml_bundle: Path) -> Path:
    """Its packages."""
    return coreml_bundle / RESOURCES
