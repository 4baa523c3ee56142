import builtins
import importlib.util

import numpy as np
import pytest

from kdc_edge.bundle import Bundle, seal
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.ports import check, zeros
from kdc_edge.runtimes import RUNTIMES, Options, open_runtime
from tests.kdc_edge.builders import with_manifest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def bundle(hand_bundle):
    return Bundle.open(hand_bundle)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_outputs_are_what_the_ports_declare(bundle, name, component):
    runtime = open_runtime(bundle, component, name)
    assert runtime.ports == bundle.component(component).ports
    outputs = runtime(**zeros(runtime.ports.inputs, {"batch": 2}))
    assert check(runtime.ports.outputs, outputs, component) == {"batch": 2}
    runtime.close()


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_same_call_gets_the_same_answer(bundle, name):
    runtime = open_runtime(bundle, "unet", name)
    feed = zeros(runtime.ports.inputs, {"batch": 1})
    first, second = runtime(**feed)["out_sample"], runtime(**feed)["out_sample"]
    feed["timestep"] = np.array(500, np.float32)
    assert np.array_equal(first, second) and not np.array_equal(first, runtime(**feed)["out_sample"])


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_feed_that_does_not_fit(bundle, name):
    runtime = open_runtime(bundle, "unet", name)
    with pytest.raises(UsageError, match=r"unet.sample has shape"):
        runtime(**zeros(runtime.ports.inputs, {"batch": 1}) | {"sample": np.zeros((1, 1, 1, 1), np.float32)})


def test_ort_computes_the_graph(bundle):
    runtime = open_runtime(bundle, "unet", "ort", Options(threads=1))
    feed = {
        "sample": np.full((1, 4, 8, 8), 2, np.float32),
        "timestep": np.array(100, np.float32),
        "encoder_hidden_states": np.full((1, 77, 8), 3, np.float32),
    }
    assert np.allclose(runtime(**feed)["out_sample"], 2 * 0.5 + 3 + 100 * 1e-3)
    assert runtime.provider == "CPUExecutionProvider"


def test_unknown_names(bundle):
    with pytest.raises(UsageError, match=r"no runtime 'otr'; .*did you mean 'ort'"):
        open_runtime(bundle, "unet", "otr")
    with pytest.raises(UsageError, match="did you mean 'unet'"):
        open_runtime(bundle, "unett", "fake")
    with pytest.raises(UsageError, match=r"no provider 'cdua'; .*did you mean 'cuda'"):
        open_runtime(bundle, "unet", "ort", Options(provider="cdua"))
    with pytest.raises(UsageError, match="threads is 0"):
        Options(threads=0)


def test_a_provider_that_is_not_there_is_not_replaced_quietly(bundle):
    with pytest.raises(MissingBackend, match=r"has no QNNExecutionProvider, it has .*--allow-fallback"):
        open_runtime(bundle, "unet", "ort", Options(provider="qnn"))
    runtime = open_runtime(bundle, "unet", "ort", Options(provider="qnn", allow_fallback=True))
    assert runtime.provider == "CPUExecutionProvider"


def test_a_provider_that_is_there_and_not_used_is_not_replaced_quietly(bundle, monkeypatch):
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers=providers[-1:])
    )
    with pytest.raises(MissingBackend, match="CUDAExecutionProvider was asked for, onnxruntime chose CPU"):
        open_runtime(bundle, "unet", "ort", Options(provider="cuda"))
    open_runtime(bundle, "unet", "ort", Options(provider="cuda", allow_fallback=True))


def test_a_toolchain_that_is_not_there(bundle, monkeypatch):
    real = builtins.__import__

    def without_ort(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ort)
    with pytest.raises(MissingBackend, match=r"onnxruntime is not installed; pip install 'kdc-edge\[ort\]'"):
        open_runtime(bundle, "unet", "ort")


def test_a_bundle_for_another_runtime(bundle_copy):
    with_manifest(bundle_copy, runtime="coreml")
    with pytest.raises(UsageError, match="a bundle for coreml, which runtime ort does not read; use fake"):
        open_runtime(Bundle.open(bundle_copy), "unet", "ort")


def test_a_model_that_does_not_load(bundle_copy):
    manifest = Bundle.open(bundle_copy).manifest
    (bundle_copy / "unet" / "model.onnx").write_bytes(b"not a protobuf")
    seal(bundle_copy, manifest)
    with pytest.raises(BundleError, match=r"model.onnx: onnxruntime .* cannot load it"):
        open_runtime(Bundle.open(bundle_copy), "unet", "ort")
