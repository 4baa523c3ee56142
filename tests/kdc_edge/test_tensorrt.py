"""The `tensorrt` runtime and refitting, on a fake TensorRT that executes what it was built from and a fake CUDA that keeps
its memory apart and works only when waited for. Real engines need a GPU: see bench/test_gpu.py."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from kdc_edge import cli
from kdc_edge.bundle import Bundle, seal
from kdc_edge.errors import BundleError, MissingBackend, ResourceError, UsageError
from kdc_edge.noise import gaussian
from kdc_edge.ports import resolve
from kdc_edge.runtimes import Options, open_runtime, refits, tensorrt
from kdc_edge.runtimes.building import build_bundle
from kdc_edge.runtimes.engines import BuildOptions
from tests.kdc_edge.fake_cuda import SIZE, Cuda
from tests.kdc_edge.fake_tensorrt import VERSIONS, fake

REFITTABLE = BuildOptions(refit=True)


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture(params=VERSIONS)
def machine(
    request: pytest.FixtureRequest, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> SimpleNamespace:
    """With a TensorRT of each version, a GPU, and a cache of its own."""
    trt, log = fake(request.param, cuda=cuda)
    install(monkeypatch, trt, cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return SimpleNamespace(trt=trt, log=log, cuda=cuda, cache=tmp_path / "cache" / "kdc-edge")


def install(monkeypatch: pytest.MonkeyPatch, trt: object, cuda: Cuda) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)


@pytest.fixture
def bundle(tiny_trt_bundle: Path) -> Bundle:
    return Bundle.open(tiny_trt_bundle)


def feed(bundle: Bundle, component: str, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    noise, entry = gaussian(seed), bundle.component(component)
    shapes = {port.name: resolve(port, {"batch": batch}) for port in entry.inputs}
    fed = {name: noise(shape) for name, shape in shapes.items()}
    return fed | {"timestep": np.array(500, np.float32)} if "timestep" in fed else fed


def expected(bundle: Bundle, component: str, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runtime = open_runtime(bundle, component, "ort")
    try:
        return runtime(**fed)
    finally:
        runtime.close()


def test_it_answers_as_onnxruntime_does_and_lets_everything_go(machine: SimpleNamespace, bundle: Bundle):
    runtime, cuda = open_runtime(bundle, "unet", "tensorrt"), machine.cuda
    assert sorted(map(len, cuda.memory.values())) == sorted(
        np.dtype(p.dtype).itemsize * int(np.prod(resolve(p, {"batch": 2})))
        for p in (*bundle.component("unet").inputs, *bundle.component("unet").outputs)
    )
    assert {p.dtype for p in bundle.component("unet").outputs} == {"float16"}
    for batch, seed in ((2, 0), (2, 1), (2, 2), (2, 3), (1, 4), (1, 5), (2, 6)):
        fed = feed(bundle, "unet", batch, seed)
        found, wanted = runtime(**fed), expected(bundle, "unet", fed)
        assert found["out_sample"].dtype == np.float32
        assert np.array_equal(found["out_sample"], wanted["out_sample"])
    assert (cuda.launches, cuda.graphs) == (
        4,
        0,
    )  # three of the first size, one of the second; none is held of the third
    runtime.close()
    assert (cuda.memory, cuda.graphs, cuda.streams) == ({}, 0, 0)


def test_what_cannot_be_captured_runs_without_a_graph(bundle, monkeypatch, tmp_path, caplog):
    cuda = Cuda(capturable=False)
    install(monkeypatch, fake("11.4.0", cuda=cuda)[0], cuda)
    runtime = open_runtime(bundle, "vae_decoder", "tensorrt", Options(cache_dir=tmp_path))
    fed = feed(bundle, "vae_decoder")
    for _ in range(4):
        assert np.array_equal(runtime(**fed)["sample"], expected(bundle, "vae_decoder", fed)["sample"])
    assert (cuda.launches, caplog.text.count("cannot be captured")) == (0, 1)
    runtime.close()


@pytest.mark.parametrize("machine", ["10.3.0"], indirect=True)
def test_bad_feeds_and_damaged_engines(machine: SimpleNamespace, bundle: Bundle):
    runtime = open_runtime(bundle, "unet", "tensorrt")
    with pytest.raises(UsageError, match="batch is 3, the engine was built for 2 at most"):
        runtime(**feed(bundle, "unet", batch=3))
    runtime.close()
    with pytest.raises(BundleError, match="cannot load the engine"):
        tensorrt.opened(machine.trt, machine.cuda, b"other", bundle, "unet")


@pytest.mark.parametrize("machine", ["10.3.0", "11.4.0"], indirect=True)
def test_layers_are_timed_with_what_they_compute_in(machine: SimpleNamespace, bundle: Bundle):
    rows = tensorrt.layer_times(bundle, "vae_decoder", Options())
    graph = onnx.load(bundle.path / "vae_decoder" / "model.onnx").graph
    assert [row["kind"] for row in rows] == [node.op_type for node in graph.node]
    assert {(row["precision"], row["ms"], row["calls"]) for row in rows} == {("Half", 0.5, tensorrt.LAYER_CALLS)}
    assert machine.cuda.memory == {}


@pytest.mark.parametrize("machine", ["10.3.0"], indirect=True)
def test_building_from_the_command_line_then_drawing(machine: SimpleNamespace, bundle: Bundle, tmp_path, capsys):
    for said in (" built", "was there"):
        assert run("build", str(bundle.path), "--workspace-mib", "512") == 0
        assert capsys.readouterr().err.count(said) == 3
    assert len(list(machine.cache.glob("*.engine"))) == 3
    picture = tmp_path / "apple.png"
    assert run("generate", "red apple", "--bundle", str(bundle.path), "--runtime", "tensorrt", "-o", str(picture)) == 0
    assert picture.exists()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


@pytest.mark.parametrize(
    ("precision", "sm", "options", "error", "said"),
    [
        ("fp8", (8, 7), BuildOptions(), MissingBackend, "fp8 needs sm_89 or later, this device is sm_87"),
        ("fp16", (8, 7), BuildOptions(workspace_mib=1 << 20), ResourceError, f"the device has {SIZE >> 20}"),
    ],
)
def test_what_the_device_cannot(precision, sm, options, error, said, bundle, monkeypatch, tmp_path):
    cuda = Cuda(sm)
    install(monkeypatch, fake("10.3.0", cuda=cuda)[0], cuda)
    other = shutil.copytree(bundle.path, tmp_path / "bundle")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"precision": precision}))
    with pytest.raises(error, match=said):
        build_bundle(other, tmp_path / "cache", options)


@pytest.fixture
def newer(bundle: Bundle, tmp_path: Path) -> Iterator[Path]:
    """The same student a few training steps later."""
    folder = shutil.copytree(bundle.path, tmp_path / "newer")
    change(folder, lambda tensor: onnx.numpy_helper.to_array(tensor) * 1.25)
    return folder


def change(folder: Path, weights, component: str = "unet") -> None:
    """`weights` of every fp16 weight, and the bundle sealed again."""
    path = folder / component / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights(tensor).astype(np.float16), tensor.name))
    onnx.save(model, path)
    seal(folder, manifest_of(folder))


def manifest_of(folder: Path):
    from kdc_edge import manifest
    from kdc_edge.files import read_json

    return manifest.parse(read_json(folder / "manifest.json"), folder)


def built(bundle: Bundle, machine: SimpleNamespace, options: BuildOptions = REFITTABLE) -> Path:
    return Path(build_bundle(bundle.path, machine.cache, options)["built"]["unet"]["engine"])


def test_an_engine_takes_newer_weights_and_answers_as_the_newer_bundle(machine, bundle, newer, capsys):
    engine = built(bundle, machine)
    assert run("refit", str(engine), str(newer), "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["refitted"], told["engine"] != str(engine)) == (True, True)
    assert told["snr_db"] > 50
    found, fresh = Bundle.open(newer), feed(bundle, "unet")
    builds = [name for name, _ in machine.log].count("build_serialized_network")
    runtime = open_runtime(found, "unet", "tensorrt")  # from the cache: nothing is built
    assert [name for name, _ in machine.log].count("build_serialized_network") == builds
    assert np.array_equal(runtime(**fresh)["out_sample"], expected(found, "unet", fresh)["out_sample"])
    assert not np.array_equal(runtime(**fresh)["out_sample"], expected(bundle, "unet", fresh)["out_sample"])


def test_a_refit_that_goes_wrong_is_seen_and_built_with_the_timing_cache(bundle, newer, monkeypatch, tmp_path, caplog):
    cuda = Cuda()
    trt, log = fake("11.4.0", cuda=cuda, broken=True)
    install(monkeypatch, trt, cuda)
    engine = built(bundle, SimpleNamespace(cache=tmp_path))
    told = refits.refit_engine(engine, newer)
    assert told["refitted"] is False
    assert "dB from onnxruntime, floor 50" in told["why"]
    assert "built anew" in caplog.text
    assert [given for name, given in log if name == "create_timing_cache"][-1] == (b"timings",)
    assert Path(told["engine"]).exists()


CHANGES = {
    "renamed": (lambda w: w | {"new": w.pop("conv_in.weight")}, "it has no 'conv_in.weight'; the engine has no 'new'"),
    "wider": (
        lambda w: w["conv_in.weight"].update(shape=[8, 16]), r"'conv_in.weight' is float16 \(8, 16\), the engine's",
    ),
    "retyped": (lambda w: w["conv_in.weight"].update(type="int8"), r"'conv_in.weight' is int8 .*, the engine's float16"),
}  # fmt: skip


@pytest.mark.parametrize("how", [*CHANGES, "rewired", "unsaid"])
@pytest.mark.parametrize("machine", ["10.3.0"], indirect=True)
def test_another_graph_is_refused(machine, bundle, newer, how: str):
    engine, path = built(bundle, machine), newer / "unet" / "weights.json"
    known = json.loads(path.read_text())
    if how in CHANGES:
        alter, said = CHANGES[how]
        known["weights"] = alter(known["weights"]) or known["weights"]
    else:
        known["structure"], said = "0" * 64, "its operators are others"
    path.write_text(json.dumps(known))
    if how == "unsaid":
        path.unlink()
        said = "does not say what its weights are"
    seal(newer, manifest_of(newer))
    with pytest.raises(BundleError, match=said) as refused:
        refits.refit_engine(engine, newer)
    assert "kdc-edge build" in str(refused.value)


@pytest.mark.parametrize("machine", ["10.3.0"], indirect=True)
def test_engines_that_are_not_refitted(machine, bundle, newer, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="built without --refit"):
        refits.refit_engine(built(bundle, machine, BuildOptions()), newer)
    engine, cuda = built(bundle, machine), Cuda(driver=13000)
    install(monkeypatch, fake("11.4.0", cuda=cuda)[0], cuda)
    with pytest.raises(BundleError, match=r"tensorrt is 10\.3\.0, here 11\.4\.0; driver is 12060, here 13000"):
        refits.refit_engine(engine, newer)
    with pytest.raises(BundleError, match="absent"):
        refits.refit_engine(tmp_path / "absent.engine", newer)
