"""The Core ML runtime against a fake of coremltools' interface: what is compiled, kept, asked for, refused and told."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.manifest import Component
from kdc_edge.ports import COMPONENTS
from kdc_edge.runtimes import Options, apple, coreml
from tests.kdc_edge import builders

LATENT = {"channels": 4, "height": 4, "width": 4}
SIZES = {"tokens": 77, "text_width": 8, **LATENT, "colours": 3, "image_height": 8, "image_width": 8}


class MLCPUComputeDevice: ...


class MLNeuralEngineComputeDevice: ...


class Library:
    """What of coremltools is used; `device` is where its plans put operators."""

    __version__ = "9.0"

    def __init__(self, device: type = MLNeuralEngineComputeDevice, broken: str = "") -> None:
        self.device, self.broken = device, broken
        self.compiled: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.asked: list[dict[str, np.ndarray]] = []
        self.ComputeUnit = SimpleNamespace(**{name: name for name in coreml.UNITS.values()})
        plan = SimpleNamespace(load_from_path=self._plan)
        utils = SimpleNamespace(compile_model=self._compile)
        self.models = SimpleNamespace(
            utils=utils, CompiledMLModel=self._load, compute_plan=SimpleNamespace(MLComputePlan=plan)
        )

    def _compile(self, source: str, target: str) -> None:
        if self.broken == "compile":
            raise RuntimeError("weights are missing")
        shutil.copytree(source, target)
        self.compiled.append(Path(source).name)

    def _load(self, path: str, compute_units: str) -> Any:
        if self.broken == "load":
            raise RuntimeError("cannot be opened")
        self.loaded.append((Path(path).name, compute_units))
        return SimpleNamespace(predict=self._predict)

    def _predict(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.asked.append(arrays)
        return {"noise_pred": arrays["sample"] + arrays["timestep"][:, None, None, None]}

    def _plan(self, path: str, compute_units: str) -> Any:
        operations = ["const", "conv", "conv"]
        block = SimpleNamespace(operations=operations)
        program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
        usage = SimpleNamespace(preferred_compute_device=self.device())
        return SimpleNamespace(
            model_structure=SimpleNamespace(program=program),
            get_compute_device_usage_for_mlprogram_operation=lambda op: None if op == "const" else usage,
        )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Library, Bundle, Options]]:
    def build(library: Library | None = None, titles: tuple[str, ...] = ("Unet",), batch: int = 1, **options: Any):
        library = Library() if library is None else library
        monkeypatch.setattr(coreml, "toolchain", lambda: library)
        files = []
        for title in titles:
            path = tmp_path / "bundle" / "Resources" / f"{title}.mlpackage" / "Manifest.json"
            path.parent.mkdir(parents=True)
            path.write_text("{}")
            files.append(path.relative_to(tmp_path / "bundle").as_posix())
        ports = COMPONENTS["unet"].bind(SIZES)
        unet = Component(tuple(files), ports.inputs, ports.outputs, 1, options={"batch": batch})
        manifest = replace(builders.manifest(), runtime="coreml", components={"unet": unet}, files={})
        return library, Bundle(tmp_path / "bundle", manifest, "id"), Options(cache_dir=tmp_path / "cache", **options)

    return build


def feed(batch: int) -> dict[str, np.ndarray]:
    return {
        "sample": np.arange(batch * 64, dtype=np.float32).reshape(batch, 4, 4, 4),
        "timestep": np.array(10, np.float32),
        "encoder_hidden_states": np.zeros((batch, 77, 8), np.float32),
    }


@pytest.mark.parametrize(("batch", "rows", "calls"), [(1, 2, 2), (2, 2, 1), (2, 3, 2), (2, 1, 1)])
def test_rows_are_dealt_out_to_the_packages_batch(batch: int, rows: int, calls: int, make):
    library, bundle, options = make(batch=batch)
    out = coreml.open(bundle, "unet", options)(**feed(rows))["out_sample"]
    np.testing.assert_array_equal(out, feed(rows)["sample"] + 10)
    assert len(library.asked) == calls
    assert library.asked[0]["encoder_hidden_states"].shape == (batch, 8, 1, 77)


def test_what_was_compiled_is_found_again_and_both_times_are_told(make):
    library, bundle, options = make()
    first, second = (coreml.open(bundle, "unet", options).prepared for _ in range(2))
    assert library.compiled == ["Unet.mlpackage"]
    assert library.loaded == [("Unet.mlmodelc", "ALL")] * 2
    assert first.compile > 0 == second.compile
    assert min(first.load, second.load) > 0


def test_another_bundle_is_compiled_anew(make):
    library, bundle, options = make()
    for known in (bundle, replace(bundle, id="other")):
        coreml.open(known, "unet", options).close()
    assert len(library.compiled) == 2


def test_the_second_half_gets_the_inputs_and_what_the_first_gave(make):
    library, bundle, options = make(titles=("UnetChunk1", "UnetChunk2"))
    coreml.open(bundle, "unet", options)(**feed(1))
    assert "noise_pred" in library.asked[1]
    assert "sample" in library.asked[1]
    assert [name for name, _ in library.loaded] == ["UnetChunk1.mlmodelc", "UnetChunk2.mlmodelc"]


@pytest.mark.parametrize(("provider", "unit"), [("cpu", "CPU_ONLY"), ("ane", "CPU_AND_NE"), (None, "ALL")])
def test_the_unit_asked_for_is_loaded(provider: str | None, unit: str, make):
    library, bundle, options = make(provider=provider)
    coreml.open(bundle, "unet", options)
    assert library.loaded[-1][1] == unit


def test_a_unit_that_is_not_used_is_refused_unless_that_is_allowed(make):
    _, bundle, options = make(Library(MLCPUComputeDevice), provider="ane")
    with pytest.raises(MissingBackend, match="ane was asked for, Core ML puts operators 2 on cpu"):
        coreml.open(bundle, "unet", options)
    coreml.open(bundle, "unet", replace(options, allow_fallback=True))


def test_placement_counts_operators_and_no_constants(make):
    _, bundle, options = make()
    assert coreml.placement(bundle, "unet", options) == {"ane": 2}


def test_an_unknown_unit_is_a_usage_error(make):
    _, bundle, options = make(provider="npu")
    with pytest.raises(UsageError, match="no compute unit 'npu'"):
        coreml.open(bundle, "unet", options)


def test_what_cannot_be_compiled_leaves_nothing_in_the_cache(make):
    _, bundle, options = make(Library(broken="compile"))
    with pytest.raises(BundleError, match="cannot compile it: weights are missing"):
        coreml.open(bundle, "unet", options)
    assert not list(options.cache_dir.iterdir())


def test_what_cannot_be_loaded_is_compiled_anew(make):
    library, bundle, options = make(Library(broken="load"))
    with pytest.raises(BundleError, match="cannot load it"):
        coreml.open(bundle, "unet", options)
    library.broken = ""
    coreml.open(bundle, "unet", options)
    assert len(library.compiled) == 2


def test_a_component_without_a_package_is_a_damaged_bundle(make):
    _, bundle, _ = make()
    unet = replace(bundle.manifest.components["unet"], files=("unet/model.onnx",))
    other = replace(bundle, manifest=replace(bundle.manifest, components={"unet": unet}))
    with pytest.raises(BundleError, match=r"ends in \.mlpackage"):
        apple.packages(other, "unet")


@pytest.mark.skipif(coreml.sys.platform == "darwin", reason="on a Mac Core ML predicts")
def test_off_a_mac_the_other_runtime_is_named():
    with pytest.raises(MissingBackend, match="--runtime mil"):
        coreml.toolchain()
