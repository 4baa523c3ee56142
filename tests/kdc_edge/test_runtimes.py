import builtins
import contextlib
import resource
from importlib.util import find_spec

import numpy as np
import pytest

from kdc_edge.bundle import Bundle, seal
from kdc_edge.errors import BundleError, MissingBackend, ResourceError, UsageError
from kdc_edge.files import read_json
from kdc_edge.pipeline import Pipeline
from kdc_edge.ports import check, zeros
from kdc_edge.runtimes import RUNTIMES, Options, compiled, open_runtime, ort
from tests.kdc_edge.builders import with_manifest

NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(name == "openvino" and not find_spec("openvino"), reason="no openvino"))
    for name, entry in RUNTIMES.items()
    if "onnx" in entry.reads
]
pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def bundle(hand_bundle):
    return Bundle.open(hand_bundle)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_what_the_ports_declare(bundle, name, component):
    runtime = open_runtime(bundle, component, name)
    assert runtime.ports == bundle.component(component).ports
    outputs = runtime(**zeros(runtime.ports.inputs, {"batch": 2}))
    assert check(runtime.ports.outputs, outputs, component) == {"batch": 2}
    runtime.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_gets_the_same_answer(bundle, name):
    runtime = open_runtime(bundle, "unet", name)
    feed = zeros(runtime.ports.inputs, {"batch": 1})
    first, second = runtime(**feed)["out_sample"], runtime(**feed)["out_sample"]
    feed["timestep"] = np.array(500, np.float32)
    assert np.array_equal(first, second) and not np.array_equal(first, runtime(**feed)["out_sample"])


@pytest.mark.parametrize("name", NAMES)
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


def test_components_that_take_turns(bundle, monkeypatch):
    from kdc_edge.runtimes import fake

    open_now, most = [], []

    class Watched(fake.FakeRuntime):
        def __init__(self, component, *details):
            super().__init__(component, *details)
            open_now.append(component)
            most.append(len(open_now))

        def close(self):
            open_now.remove(self._component)

    monkeypatch.setattr(fake, "FakeRuntime", Watched)
    pictures = {}
    for low_memory in (False, True):
        most.clear()
        with Pipeline.open(bundle, "fake", Options(low_memory=low_memory)) as pipe:
            assert len(open_now) == (0 if low_memory else 3)
            pictures[low_memory] = [np.asarray(pipe.generate("red apple", seed=3, steps=2)) for _ in range(2)]
        assert not open_now and (max(most), len(most)) == ((1, 6) if low_memory else (3, 3))
    assert np.array_equal(pictures[False], pictures[True])


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


def test_a_provider_that_leaves_every_node_to_the_cpu_is_not_replaced_quietly(bundle, monkeypatch):
    """onnxruntime's own wheel has one: Azure's, which takes what no network here holds."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider but the CPU")
    monkeypatch.setitem(ort.PROVIDERS, "azure", "AzureExecutionProvider")
    with pytest.raises(
        MissingBackend, match=r"unet: Azure\w+ was asked for and ran 0 of \d+ nodes \(CPU\w+ \d+\); .*--allow"
    ):
        open_runtime(bundle, "unet", "ort", Options(provider="azure"))
    open_runtime(bundle, "unet", "ort", Options(provider="azure", allow_fallback=True))


@pytest.mark.parametrize(
    ("nodes", "us", "used"), [(1, 900.0, True), (500, 3.0, True), (1, 3.0, False), (4, 49.0, False), (0, 0.0, False)]
)
def test_a_provider_is_used_that_has_a_share_of_nodes_or_of_time(nodes, us, used):
    """One that compiles the network shows few nodes, one whose calls return at once shows no time."""
    ran = {"CPUExecutionProvider": (100, 1000.0), "CUDAExecutionProvider": (nodes, us)}
    if used:
        ort._require_used("unet", "CUDAExecutionProvider", ran)
    else:
        with pytest.raises(MissingBackend, match=f"CUDAExecutionProvider was asked for and ran {nodes} of"):
            ort._require_used("unet", "CUDAExecutionProvider", ran)


def test_a_session_that_was_profiled_answers_as_any_other(bundle, monkeypatch):
    monkeypatch.setattr(ort, "_require_used", lambda *_: None)
    monkeypatch.setitem(ort.PROVIDERS, "own", "CPUExecutionProvider")
    plain, profiled = (open_runtime(bundle, "unet", "ort", Options(1, provider)) for provider in (None, "own"))
    feed = zeros(plain.ports.inputs, {"batch": 2})
    assert np.array_equal(plain(**feed)["out_sample"], profiled(**feed)["out_sample"])


@pytest.mark.parametrize(("name", "package"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_a_toolchain_that_is_not_there(bundle, monkeypatch, name, package):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module == package:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingBackend, match=rf"{package} is not installed; pip install 'kdc-edge\[{name}\]'"):
        open_runtime(bundle, "unet", name)


def test_ports_that_the_file_has_not(bundle_copy):
    components = read_json(bundle_copy / "manifest.json")["components"]
    components["unet"]["outputs"][0]["name"] = "noise"
    with_manifest(bundle_copy, components=components)
    for name in ("ort", "openvino") if find_spec("openvino") else ("ort",):
        with pytest.raises(BundleError, match=r"unet: the file has no 'noise', only .*out_sample"):
            open_runtime(Bundle.open(bundle_copy), "unet", name)


def test_a_call_without_memory_says_so(bundle):
    class Session:
        def run(self, *_):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    runtime = ort.OrtRuntime(Session(), "unet", bundle.component("unet").ports)
    with pytest.raises(ResourceError, match="unet: out of memory in a call; close other programs"):
        runtime(**zeros(runtime.ports.inputs, {"batch": 1}))


def test_a_bundle_for_another_runtime(bundle_copy):
    with_manifest(bundle_copy, runtime="coreml")
    with pytest.raises(UsageError, match="a bundle for coreml, which runtime ort does not read; use coreml"):
        open_runtime(Bundle.open(bundle_copy), "unet", "ort")


def test_a_model_that_does_not_load(bundle_copy):
    manifest = Bundle.open(bundle_copy).manifest
    (bundle_copy / "unet" / "model.onnx").write_bytes(b"not a protobuf")
    seal(bundle_copy, manifest)
    with pytest.raises(BundleError, match=r"model.onnx: onnxruntime .* cannot load it"):
        open_runtime(Bundle.open(bundle_copy), "unet", "ort")
    if find_spec("openvino"):
        with pytest.raises(BundleError, match=r"model.onnx: openvino .* cannot load it"):
            open_runtime(Bundle.open(bundle_copy), "unet", "openvino")


def test_openvino_computes_what_onnxruntime_does(tiny_bundle):
    openvino = pytest.importorskip("kdc_edge.runtimes.openvino")
    pytest.importorskip("openvino")
    bundle, options = Bundle.open(tiny_bundle), Options(threads=1)
    rng = np.random.RandomState(0)
    for component in bundle.manifest.components:
        wanted, found = (open_runtime(bundle, component, name, options) for name in ("ort", "openvino"))
        feed = {
            name: rng.permutation(array.ravel() + 1).reshape(array.shape).astype(array.dtype)
            for name, array in zeros(wanted.ports.inputs, {"batch": 2}).items()
        }
        for name, array in wanted(**feed).items():
            assert np.allclose(found(**feed)[name], array, atol=1e-4 * np.abs(array).max())
    assert openvino.placement(bundle, "unet", options)["cpu"] > 10 and "cpu" in openvino.available()
    with pytest.raises(MissingBackend, match="OpenVINO has no device NPU here, it has CPU; pass --allow-fallback"):
        open_runtime(bundle, "unet", "openvino", Options(provider="npu"))
    open_runtime(bundle, "unet", "openvino", Options(provider="npu", allow_fallback=True)).close()


@pytest.mark.parametrize("name", NAMES[:2])
def test_what_was_compiled_here_is_read_again(tiny_bundle, tmp_path, name):
    bundle, options = Bundle.open(tiny_bundle), Options(threads=1, cache_dir=tmp_path / "cache")
    feed = zeros(bundle.component("unet").ports.inputs, {"batch": 2}) | {"timestep": np.array(500, np.float32)}
    plain = open_runtime(bundle, "unet", name, Options(threads=1))(**feed)["out_sample"]
    assert np.array_equal(open_runtime(bundle, "unet", name, options)(**feed)["out_sample"], plain)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert np.array_equal(open_runtime(bundle, "unet", name, options)(**feed)["out_sample"], plain)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()} != {}


@pytest.mark.parametrize("name", NAMES[:2])
def test_what_a_killed_writer_left_is_removed_and_no_half_is_ever_read(bundle, tmp_path, name, monkeypatch):
    """It was killed while it compiled; a faster process' result stands."""
    options = Options(threads=1, cache_dir=tmp_path)
    open_runtime(bundle, "unet", name, options).close()
    (kept,) = tmp_path.iterdir()
    left = tmp_path / f".{kept.name}.0123abcd.partial"
    kept.rename(left)
    open_runtime(bundle, "unet", name, options).close()
    assert [*tmp_path.iterdir()] == [kept]
    files = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    kept.rename(tmp_path / "faster")
    real = compiled.replace_dir

    @contextlib.contextmanager
    def late(*arguments, **settings):
        with real(*arguments, **settings) as made:
            yield made
            (tmp_path / "faster").rename(kept)

    monkeypatch.setattr(compiled, "replace_dir", late)
    open_runtime(bundle, "unet", name, options).close()
    assert [*tmp_path.iterdir()] == [kept] and {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("damaged", ["model.onnx", "model.onnx.data"])
def test_a_damaged_cache_is_made_anew(tiny_bundle, tmp_path, damaged):
    bundle, options = Bundle.open(tiny_bundle), Options(threads=1, cache_dir=tmp_path)
    feed = zeros(bundle.component("unet").ports.inputs, {"batch": 1})
    wanted = open_runtime(bundle, "unet", "ort", options)(**feed)["out_sample"]
    (path,) = tmp_path.glob(f"*/{damaged}")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert np.array_equal(open_runtime(bundle, "unet", "ort", options)(**feed)["out_sample"], wanted)
    assert path.stat().st_size == size


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_cache_that_cannot_be_written(bundle, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--cache-dir .*file.*; name a folder that can be written"):
        open_runtime(bundle, "unet", name, Options(cache_dir=tmp_path / "file"))


def test_a_disk_too_full_for_the_cache(tiny_bundle, tmp_path):
    bundle, limits = Bundle.open(tiny_bundle), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        runtime = open_runtime(bundle, "unet", "ort", Options(threads=1, cache_dir=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.isfinite(runtime(**zeros(bundle.component("unet").ports.inputs, {"batch": 1}))["out_sample"]).all()
    assert not list(tmp_path.iterdir())


def test_a_cache_of_another_processor_or_bundle_is_not_read(tiny_bundle, hand_bundle, tmp_path, monkeypatch):
    from kdc_edge import machine

    first, other = Bundle.open(tiny_bundle), Bundle.open(hand_bundle)
    here = compiled.folder(tmp_path, first, "unet", "onnxruntime", "1")
    assert here == compiled.folder(tmp_path, first, "unet", "onnxruntime", "1")
    elsewhere = {compiled.folder(tmp_path, first, "unet", "onnxruntime", "2"), compiled.folder(tmp_path, other, "unet")}
    monkeypatch.setattr(machine, "instructions", lambda: "sse2")
    assert here not in elsewhere | {compiled.folder(tmp_path, first, "unet", "onnxruntime", "1")}
