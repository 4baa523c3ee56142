"""Every scheme on every target: what is stored, that it is small, near and what coremltools itself restores."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.apple.compression import compress, said
from convert.apple.lint import advice
from convert.apple.schemes import EMBEDDINGS, Linear, Palette, Plan, Sparse, require
from convert.parity import snr_db
from kdc_edge.errors import UsageError
from kdc_edge.torch_ref.mil.container import Package, operations
from kdc_edge.torch_ref.mil.program import Program
from kdc_edge.torch_ref.quiet import silent

OLD = {
    Palette(8): 40, Palette(6): 28, Palette(4): 17, Palette(2): 6, Palette(4, uniform=True): 14, Linear(8): 36,
    Linear(8, symmetric=False): 36, Sparse(0.5): 8,
}  # fmt: skip
NEW = {
    Palette(3): 11, Palette(4, group=8): 17, Palette(4, int8_table=True): 17, Linear(4): 12, Linear(4, 32): 15,
    Sparse(0.5, Palette(4)): 8, Sparse(0.5, Linear(8)): 8,
}  # fmt: skip
CASES = [("ios16", scheme, db) for scheme, db in OLD.items()]
CASES += [("ios18", scheme, db) for scheme, db in (OLD | NEW).items()]


@pytest.mark.parametrize(("target", "scheme", "db"), CASES, ids=str)
def test_a_scheme_is_small_and_near(target: str, scheme, db: float, toy, tmp_path: Path):
    program, network, names = toy(target)
    plan = Plan(scheme, EMBEDDINGS)
    require({"unet": plan}, target)
    kept = program._mil_program
    try:
        with silent():
            model, found = compress(program, plan, names)
            model.save(str(tmp_path / "toy.mlpackage"))
    finally:
        program._mil_program = kept
    assert found.tensors == {said(scheme): 1, "as it was": 1} or found.tensors[said(scheme)] == 1
    ids = np.arange(64, dtype=np.float32)[None]
    with torch.no_grad():
        wanted = network(torch.from_numpy(ids)).numpy()
    opened = Package.open(tmp_path / "toy.mlpackage")
    assert snr_db(wanted, Program.of(opened, "main")(exact=True, ids=ids)["out"]) > db
    stored = (tmp_path / "toy.mlpackage" / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    kinds = Counter(op.type for op in operations(opened.functions["main"]))
    assert sum(count for kind, count in kinds.items() if kind.startswith("constexpr_")) >= 1
    assert stored < 0.9 * 2 * sum(p.numel() for p in network.parameters())


def test_a_name_can_be_left_alone(toy, tmp_path: Path):
    program, _, names = toy("ios16")
    kept = program._mil_program
    with silent():
        _, found = compress(program, Plan(Palette(4), EMBEDDINGS, {"conv*": Linear(8)}), names)
    program._mil_program = kept
    assert found.tensors["int8"] == 1
    assert found.numbers["int8"] == 32 * 32 * 9


def test_a_pattern_that_fits_no_weight_is_a_usage_error(toy):
    program, _, names = toy("ios16")
    with pytest.raises(UsageError, match="named 'convv"):
        compress(program, Plan(Palette(4), names={"convv*": None}), names)


def test_the_advice_names_operator_and_source(toy, tmp_path: Path):
    program, _, _ = toy("ios16")
    with silent():
        program.save(str(tmp_path / "toy.mlpackage"))
    found = advice(tmp_path / "toy.mlpackage", chunks=False)
    assert [line.first.split()[0] for line in found] == ["gather"]
    assert all(line.source for line in found)
