"""Saved Core ML programs, executed: operators and weights against coremltools' own numbers, networks against PyTorch."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdc_edge.differences import snr_db
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.torch_ref.mil.container import Package
from kdc_edge.torch_ref.mil.program import Program, Stored
from kdc_edge.torch_ref.mil.report import chosen, examine, first, recorded, table
from kdc_edge.torch_ref.mil.weights import RESTORE, unpack
from kdc_edge.torch_ref.quiet import silent

with silent():
    ct = pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")

from tests.torch_ref.mil_network import WEIGHTY, Miniature, by_hand, converted, feed, weighty

TARGETS = ("iOS16", "iOS17", "iOS18")
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture(scope="module")
def network() -> Miniature:
    return Miniature().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(network: Miniature) -> Callable[[str, bool], Any]:
    """`models(target, half)`: converted once."""
    made: dict[tuple[str, bool], Any] = {}

    def make(target: str, half: bool) -> Any:
        if (target, half) not in made:
            made[target, half] = converted(network, target, half)
        return made[target, half]

    return make


@pytest.fixture
def package(models, tmp_path: Path) -> Path:
    """In fp16, for iOS 17; a test's own."""
    return saved(models("iOS17", True), tmp_path / "network.mlpackage")


def saved(model: Any, path: Path) -> Path:
    with silent():
        model.save(str(path))
    return path


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_network_is_what_pytorch_computes(target: str, half: bool, network, models, tmp_path: Path):
    program = Program.open(saved(models(target, half), tmp_path / "x.mlpackage"))
    for timestep in (981.0, 1.0):
        inputs = feed(timestep)
        wanted = network(*(torch.from_numpy(array) for array in inputs.values())).numpy()
        found, exact = program(**inputs)["out"], program(exact=True, **inputs)["out"]
        assert snr_db(wanted, found) >= (50 if half else 100)  # 100 dB: 1e-5
        assert half == (not np.array_equal(found, exact))
        assert half == ("fp16" in {kind for step in program.steps for kind in step.types})


def test_only_weights_stay_in_memory(package: Path):
    program = Program.open(package)
    values = program._start(feed(), exact=False)
    for _ in program._walk(values, exact=False):
        pass
    assert set(values) == {"out"}
    read = {name for step in program.steps for name in step.last}
    assert read >= {"sample", "timestep", "text"}


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("alone", [True, False])
def test_a_softmax_takes_the_memory_of_what_it_alone_reads(axis: int, alone: bool, tmp_path: Path):
    def body(mb: Any, x: Any) -> Any:
        product = mb.mul(x=x, y=np.float32(3), name="product")
        soft = mb.softmax(x=product, axis=axis, name="soft")
        return soft if alone else (soft, product)

    program = Program.open(by_hand(tmp_path / "x.mlpackage", {"x": (2, 5, 40)}, body))
    assert program.steps[-1].into == ("product" if alone else None)
    x = np.random.RandomState(0).standard_normal((2, 5, 40)).astype(np.float32)
    found = program(x=x)
    assert np.array_equal(found["soft"], torch.from_numpy(3 * x).softmax(axis).numpy())
    assert alone or np.array_equal(found["product"], 3 * x)


def palette(bits: int, **more: Any) -> Any:
    from coremltools.optimize.coreml import OpPalettizerConfig

    return "palettize_weights", OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=256, **more)


def linear(mode: str = "linear_symmetric", **more: Any) -> Any:
    from coremltools.optimize.coreml import OpLinearQuantizerConfig

    return "linear_quantize_weights", OpLinearQuantizerConfig(mode=mode, weight_threshold=256, **more)


def sparse(share: float = 0.5) -> Any:
    from coremltools.optimize.coreml import OpMagnitudePrunerConfig

    return "prune_weights", OpMagnitudePrunerConfig(target_sparsity=share, weight_threshold=256)


GROUPED = {"granularity": "per_grouped_channel", "group_size": 8}
TABLE = ("linear_quantize_weights", {"mode": "linear_symmetric", "granularity": "per_tensor", "weight_threshold": 1})
OLD: dict[str, list[Any]] = {
    **{f"palette {bits}": [palette(bits)] for bits in (1, 2, 4, 6, 8)},
    "int8": [linear()],
    "int8 with offsets": [linear("linear")],
    "uint8": [linear("linear", dtype="uint8")],
    "int8 of the tensor": [linear(granularity="per_tensor")],
    "sparse": [sparse()],
}
NEW: dict[str, list[Any]] = {
    "palette 3": [palette(3)],
    "palette 4 in groups": [palette(4, **GROUPED)],
    "palette 4 in groups of inputs": [palette(4, **GROUPED, channel_axis=1)],
    "palette 4 with scales": [palette(4, enable_per_channel_scale=True)],
    "palette 4 with an int8 table": [palette(4), linear(granularity="per_tensor")],
    "int4": [linear(dtype="int4")],
    "int4 in blocks with offsets": [linear("linear", dtype="int4", granularity="per_block", block_size=8)],
    "uint4 in blocks": [linear("linear", dtype="uint4", granularity="per_block", block_size=8)],
    "sparse palette 4": [sparse(), palette(4)],
    "sparse int8": [sparse(), linear()],
    "sparse int8 with offsets": [sparse(), linear("linear")],
}
CASES = [("iOS17", name) for name in OLD] + [("iOS18", name) for name in NEW]
CASES += [pytest.param(target, name, marks=pytest.mark.slow) for target in ("iOS16", "iOS18") for name in OLD]


@pytest.mark.parametrize(("target", "scheme"), CASES, ids=str)
def test_weights_are_restored_bit_by_bit(target: str, scheme: str, tmp_path: Path):
    """Against the package that coremltools itself decompressed."""
    import coremltools.optimize.coreml as cto

    model = weighty(target)
    with silent():
        for i, (function, config) in enumerate((OLD | NEW)[scheme]):
            more = {"joint_compression": True} if i else {}
            model = getattr(cto, function)(model, cto.OptimizationConfig(global_config=config), **more)
        plain = cto.decompress_weights(model)
    small = Program.open(saved(model, tmp_path / "small.mlpackage"))
    wide = Program.open(saved(plain, tmp_path / "wide.mlpackage"))
    stored = {op.type for op in operations(tmp_path / "small.mlpackage")} & RESTORE.keys()
    assert stored
    ours, theirs = weights(small), weights(wide)
    assert ours.keys() == theirs.keys() == {"gather", "conv", "linear"}
    for kind, found in ours.items():
        assert found.dtype == theirs[kind].dtype == np.float16
        assert found.tobytes() == np.ascontiguousarray(theirs[kind]).tobytes()
    rows = np.random.RandomState(0).uniform(0, 8, WEIGHTY["x"]).astype(np.float32)
    assert np.array_equal(small(x=rows)["out"], wide(x=rows)["out"])


def weights(program: Program) -> dict[str, np.ndarray]:
    """By the operator that reads them."""
    read = ((step.kind, value) for step in program.steps for value in step.inputs.values())
    arrays = ((kind, value.array()) for kind, value in read if isinstance(value, Stored))
    return {kind: array for kind, array in arrays if array.size > 256}


def operations(path: Path) -> list[Any]:
    package = Package.open(path)
    function = package.functions[package.function()]
    return list(function.block_specializations[function.opset].operations)


def test_vectors_of_a_palette_lie_on_their_axis():
    """Apple's own example: indices (2, 2, 2), two entries of three numbers."""
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense as theirs

    rng = np.random.RandomState(0)
    indices = rng.randint(0, 2, (2, 2, 2)).astype(np.uint8)
    for groups in ((1, 1, 1), (2, 1, 1)):
        lut = rng.standard_normal((*groups, 2, 3)).astype(np.float16)
        for axis in (1, 2, -1):
            found = RESTORE["constexpr_lut_to_dense"]({"indices": indices, "lut": lut, "vector_axis": axis})
            assert np.array_equal(found, theirs.decompress(indices, lut, axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_vectors_of_a_sparse_palette(axis: int):
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_sparse as theirs

    rng = np.random.RandomState(1)
    mask = rng.randint(0, 2, (4, 6)).astype(np.uint8)
    indices, lut = (
        rng.randint(0, 2, int(mask.sum())).astype(np.uint8),
        rng.standard_normal((1, 1, 2, 2)).astype(np.float16),
    )
    given = {"indices_mask": mask, "indices_nonzero_data": indices, "lut": lut, "vector_axis": axis}
    for found, wanted in zip(
        RESTORE["constexpr_lut_to_sparse"](given), theirs.decompress(mask, indices, lut, axis), strict=True
    ):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_bits_come_back(bits: int):
    numbers = np.random.RandomState(bits).randint(0, 2**bits, 37)
    flat = [(int(n) >> bit) & 1 for n in numbers for bit in range(bits)]
    assert np.array_equal(unpack(np.packbits(flat, bitorder="little"), bits, 37), numbers)


def test_functions_of_a_package_share_their_weights(models, tmp_path: Path):
    one, two = (saved(models("iOS18", half), tmp_path / f"{half}.mlpackage") for half in (True, False))
    functions = ct.utils.MultiFunctionDescriptor()
    functions.add_function(str(one), "main", "half")
    functions.add_function(str(two), "main", "whole")
    functions.default_function_name = "whole"
    with silent():
        ct.utils.save_multifunction(functions, str(tmp_path / "both.mlpackage"))
    both = tmp_path / "both.mlpackage"
    for name, alone in (("half", one), ("whole", two), (None, two)):
        assert np.array_equal(Program.open(both, name)(**feed())["out"], Program.open(alone)(**feed())["out"])
    with pytest.raises(UsageError, match="no function 'hal'; there are whole, half; did you mean 'half'"):
        Program.open(both, "hal")


def test_a_function_is_found_by_the_shapes_it_takes(package: Path):
    opened = Package.open(package)
    shapes = {name: array.shape for name, array in feed().items()}
    assert opened.fitting(shapes) == "main"
    with pytest.raises(UsageError, match=r"takes sample 1×8×8×8.* was given sample 1×8×8×9"):
        opened.fitting(shapes | {"sample": (1, 8, 8, 9)})


def test_an_input_of_another_shape_or_name_is_a_usage_error(package: Path):
    program = Program.open(package)
    with pytest.raises(UsageError, match="sample has shape"):
        program(**feed() | {"sample": np.zeros((2, 8, 8, 8), np.float32)})
    with pytest.raises(UsageError, match="takes sample, timestep, text, was given sample"):
        program(sample=feed()["sample"])


def cut(package: Path) -> None:
    data = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(data[: len(data) // 2])


def mark(package: Path) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    data[64:68] = b"none"
    (package / WEIGHTS).write_bytes(data)


def other_operator(package: Path) -> None:
    spec = ct.proto.Model_pb2.Model.FromString((package / MODEL).read_bytes())
    function = spec.mlProgram.functions["main"]
    every = function.block_specializations[function.opset].operations
    next(op for op in every if op.type == "silu").type = "sylu"
    (package / MODEL).write_bytes(spec.SerializeToString())


def no_program(package: Path) -> None:
    spec = ct.proto.Model_pb2.Model()
    spec.neuralNetwork.SetInParent()
    (package / MODEL).write_bytes(spec.SerializeToString())


def outside(package: Path) -> None:
    text = (package / "Manifest.json").read_text()
    (package / "Manifest.json").write_text(text.replace("com.apple.CoreML/model.mlmodel", "../../model.mlmodel"))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (cut, r"weight.bin: \d+ bytes, .* (ends|begins) at \d+"),
    (mark, "weight.bin: damaged at byte 64"),
    (lambda package: shutil.rmtree(package / "Data/com.apple.CoreML/weights"), "weight.bin: missing, .* is stored in it"),
    (lambda package: (package / MODEL).write_bytes(b"\xff" * 100), "model.mlmodel: damaged, not a Core ML model"),
    (lambda package: (package / MODEL).unlink(), "model.mlmodel: missing"),
    (lambda package: (package / "Manifest.json").unlink(), "no Manifest.json in it"),
    (lambda package: (package / "Manifest.json").write_text("{}"), "names no model"),
    (outside, "outside the package"),
    (no_program, "holds neuralNetwork, only an ML program"),
    (other_operator, r"function main, operator \d+ of \d+ \(.*\): 'sylu' is not known here"),
    (lambda package: shutil.rmtree(package), "no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[says[:30] for _, says in DAMAGE])
def test_what_is_damaged_is_named(damage: Callable[[Path], object], says: str, package: Path):
    damage(package)
    with pytest.raises(BundleError, match=says):
        Program.open(package)


def test_the_ranges_name_what_overflows_and_where_it_departs(tmp_path: Path):
    path = by_hand(tmp_path / "x.mlpackage", {"x": (1, 16)}, _square)
    lines = examine(Program.open(path), [{"x": np.full((1, 16), 300, np.float32)}])
    by_kind = {line.kind: line for line in lines}
    assert by_kind["square"].largest == 90000
    assert [line.kind for line in lines if line.overflows] == ["square"]
    assert by_kind["square"].broken == 16
    departed = first(lines, 0.01)
    assert departed is not None and departed.kind == "square"
    text = "\n".join(table(chosen(lines, 0.01)))
    assert "OVERFLOWS fp16  16 NOT FINITE" in text
    quiet = examine(Program.open(path), [{"x": np.full((1, 16), 3, np.float32)}])
    assert not any(line.overflows or line.broken for line in quiet)
    assert first(quiet, 0.01) is None


def _square(mb: Any, x: Any) -> Any:
    half = mb.square(x=mb.cast(x=x, dtype="fp16"))
    return mb.cast(x=mb.sqrt(x=half), dtype="fp32")


def test_the_layer_that_departs_from_pytorch_is_named(network, package: Path):
    """One weight of the network is changed; everything before it agrees."""
    program, other = Program.open(package), Miniature().eval().requires_grad_(False)
    other.to_k.weight += 0.2
    tensors = {name: torch.from_numpy(array) for name, array in feed().items()}
    layers, _ = recorded(network, tensors)
    assert first(examine(program, [feed()], [layers]), 0.02) is None
    layers, _ = recorded(other, tensors)
    lines = examine(program, [feed()], [layers])
    departed = first(lines, 0.02)
    assert departed is not None
    step = program.steps[departed.place - 1]
    assert step.weight is not None and step.weight.startswith("to_k_weight")
