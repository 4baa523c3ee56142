"""Building engines: the same code on every TensorRT that is supported, by a fake that has each one's attributes; real
tensorrt-rtx on a CPU; identities, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdc_edge.errors import BundleError, MissingBackend, ResourceError, UsageError
from kdc_edge.ports import Port
from kdc_edge.runtimes import engines, plans
from kdc_edge.runtimes.device import Device
from kdc_edge.runtimes.engines import BuildOptions, build, check_device, trtexec
from tests.kdc_edge import builders
from tests.kdc_edge.fake_tensorrt import VERSIONS, fake

PORTS = (Port("sample", "float16", ("batch", 4, 8, 8)), Port("timestep", "float32", ()))
PROFILE = {"batch": [1, 2, 2]}
EVERYTHING = BuildOptions(64, True, True, True, True, 3)
ORIN = Device("Orin", 87, 7600, 12060, 12060, "Linux-5.15")
IDENTITY = plans.Identity("0" * 64, PROFILE, "10.3.0", "Orin", 87, 12060, 12060, "Linux-5.15", {"refit": False})


@pytest.mark.parametrize("version", VERSIONS)
def test_no_version_is_asked_for_what_it_has_not(version: str):
    trt, log = fake(version)
    assert build(trt, Path("m.onnx"), PORTS, PROFILE, EVERYTHING, b"before") == (b"engine ", b"timings")
    called = dict(log)
    assert called["create_network"] == (1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,)
    assert called["create_timing_cache"] == (b"before",)
    assert called["set_memory_pool_limit"][1] == 64 << 20
    assert called["set_shape"] == ("sample", (1, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    assert [name for name, _ in log].count("set_flag") == 3


def test_the_fake_refuses_what_version_11_removed():
    assert fake("10.3.0")[0].BuilderFlag.FP16 is not None
    with pytest.raises(AttributeError, match="BuilderFlag has no FP16"):
        fake("11.4.0")[0].BuilderFlag.FP16  # noqa: B018


def test_what_the_parser_refuses_is_said_in_its_words():
    with pytest.raises(BundleError, match="no importer"):
        build(fake("11.4.0", accepts=False)[0], Path("m.onnx"), PORTS, PROFILE)


def test_the_same_by_trtexec():
    line = trtexec(Path("m.onnx"), PORTS, PROFILE, EVERYTHING)
    for part in (
        "--onnx=m.onnx", "--stronglyTyped", "--minShapes=sample:1x4x8x8", "--maxShapes=sample:2x4x8x8", "--refit",
        "--memPoolSize=workspace:64M", "--profilingVerbosity=detailed", "--timingCacheFile=m.timing",
    ):  # fmt: skip
        assert part in line


def test_without_tensorrt_or_with_another_age(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingBackend, match="JetPack"):
        engines.toolchain()
    monkeypatch.setitem(sys.modules, "tensorrt", fake("10.3.0")[0])
    assert engines.version(engines.toolchain()) == (10, 3)
    monkeypatch.setitem(sys.modules, "tensorrt", type("Old", (), {"__version__": "8.6.1"}))
    with pytest.raises(MissingBackend, match=r"tensorrt 8\.6\.1 is here"):
        engines.toolchain()


def test_what_the_device_cannot_do():
    with pytest.raises(MissingBackend, match="fp8 needs sm_89"):
        check_device("fp8", 87, 7600, BuildOptions())
    with pytest.raises(ResourceError, match="the device has 7600"):
        check_device("fp16", 87, 7600, BuildOptions(workspace_mib=8000))
    with pytest.raises(UsageError):
        BuildOptions(workspace_mib=0)


def test_an_engine_is_built_once_and_never_taken_from_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = []

    def make(timing: bytes) -> tuple[bytes, bytes]:
        made.append(timing)
        return b"engine %d" % len(made), b"timings"

    path, new = plans.obtain(tmp_path, "unet", IDENTITY, make, {})
    assert (new, made) == (True, [b""])
    assert "sm87-trt10.3.0" in path.name
    assert plans.obtain(tmp_path, "unet", IDENTITY, make, {}) == (path, False)
    other = replace(IDENTITY, tensorrt="10.16.0", sm=110)
    assert plans.obtain(tmp_path, "unet", other, make, {})[0] != path
    with pytest.raises(BundleError, match=r"tensorrt is 10\.3\.0, here 10\.16\.0; sm is 87, here 110"):
        plans.load(path, other)
    assert plans.fitting(tmp_path, "unet", replace(IDENTITY, flags={"refit": True})) == path
    assert plans.fitting(tmp_path, "unet", replace(IDENTITY, driver=13000)) is None
    path.write_bytes(b"engine 9")
    assert plans.fitting(tmp_path, "unet", IDENTITY) is None
    assert plans.obtain(tmp_path, "unet", IDENTITY, make, {}) == (path, True)
    assert "sha256" in caplog.text
    assert made[-1] == b"timings"
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["identity"]["onnx"] == IDENTITY.onnx


def test_tensorrt_rtx_builds_on_a_cpu(tmp_path: Path):
    """NVIDIA's own parser and builder, for SM86; its plans are not TensorRT's."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")
    nodes, weights = builders.graphs(16)["vae_decoder"]
    builders.write_graph(tmp_path / "model" / "model.onnx", "vae_decoder", nodes, weights)
    ports = builders.COMPONENTS["vae_decoder"].bind(builders.SIZES).inputs
    engine, _ = build(trt, tmp_path / "model" / "model.onnx", ports, PROFILE, target=trt.ComputeCapability.SM86)
    assert len(engine) > 1000
