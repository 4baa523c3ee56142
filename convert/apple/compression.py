"""Carries a plan out in a Core ML program: sparse first, then palettes and integers, then what is joined to them.

coremltools writes the operators; the palettes are ours (`convert.apple.palettes`).
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.apple.palettes import Histogram, Job, Table, fit, fit_all, squared_error
from convert.apple.schemes import SMALLEST, Linear, Palette, Plan, Scheme, Sparse, check_names
from kdc_edge import machine

CAST = "_to_fp16"


@dataclass(frozen=True)
class Compressed:
    """Tensors and numbers by scheme, seconds that tables took; squared error of palettes over the weights' square."""

    tensors: dict[str, int]
    numbers: dict[str, int]
    table_seconds: float
    error: float


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the program that is a weight of the checkpoint."""

    constant: str
    name: str
    operator: str
    array: NDArray[Any]


def compress(model: Any, plan: Plan, names: Mapping[str, str]) -> tuple[Any, Compressed]:
    """The program with small weights; `names` are the checkpoint's by what the program calls them."""
    weights = [weight for weight in constants(model, names) if weight.array.size > SMALLEST and weight.array.ndim > 1]
    check_names(plan, list(names.values()), sorted({weight.operator for weight in weights}))
    chosen = {weight.constant: _fitting(plan.of(weight.name, weight.operator), weight) for weight in weights}
    start = time.perf_counter()
    tables = Tables.of([(weight, chosen[weight.constant]) for weight in weights])
    seconds = time.perf_counter() - start
    summary = _summary(weights, chosen, seconds, tables.error)
    model._mil_program = None  # a copy of all weights
    for stage in (_prune, _palettize, _quantize, _quantize_tables):
        model = stage(model, chosen, tables)
    return model, summary


def constants(model: Any, names: Mapping[str, str]) -> Iterator[Weight]:
    """Of the main function."""
    for op in _program(model).functions["main"].operations:
        name = names.get(op.name.removesuffix(CAST)) if op.op_type == "const" else None
        if name is not None and op.outputs[0].child_ops:
            yield Weight(op.name, name, op.outputs[0].child_ops[0].op_type, op.outputs[0].val)


def _program(model: Any) -> Any:
    """The program behind a model that was converted, or read from a package."""
    if model._mil_program is None:
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = model.get_spec()
        model._mil_program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    return model._mil_program


class Tables:
    """Palettes by the bytes of what they are for: a tensor, or a group of its channels."""

    def __init__(self, found: dict[bytes, tuple[Histogram, Table]], error: float) -> None:
        self._found, self.error = found, error

    @classmethod
    def of(cls, chosen: list[tuple[Weight, Scheme]]) -> "Tables":
        """For every palette that is chosen, by as many processes as there are cores."""
        keys, jobs, energy = [], [], 0.0
        for weight, scheme in chosen:
            if not isinstance(scheme, Palette):
                continue
            array = weight.array.astype(np.float16)
            energy += float(np.sum(array.astype(np.float32) ** 2))
            for part in np.split(array, 1 if scheme.group is None else len(array) // scheme.group):
                keys.append(_key(part, scheme.palette))
                jobs.append(Job(Histogram.of(part), scheme.palette, scheme.uniform))
        tables = fit_all(jobs, machine.cores())
        error = sum(squared_error(job, table) for job, table in zip(jobs, tables, strict=True))
        found = {key: (job.histogram, table) for key, job, table in zip(keys, jobs, tables, strict=True)}
        return cls(found, error / energy if energy else 0.0)

    def function(self, scheme: Palette) -> Any:
        """What coremltools asks for a table and indices (size,)."""

        def look(weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            half = np.ascontiguousarray(weight, np.float16)
            known = self._found.get(_key(half, scheme.palette))
            if known is None:  # pruned on the way here
                histogram = Histogram.of(half)
                known = histogram, fit(Job(histogram, scheme.palette, scheme.uniform))
            histogram, table = known
            return table.entries.astype(weight.dtype), table.indices(half, histogram).ravel()

        return look


def _key(part: NDArray[np.float16], bits: int) -> bytes:
    return hashlib.sha1(np.ascontiguousarray(part).data).digest() + bytes([bits])


def _fitting(scheme: Scheme, weight: Weight) -> Scheme:
    """Groups and blocks that do not divide the channels evenly become one for the tensor."""
    match scheme:
        case Palette(group=int() as group) if len(weight.array) % group:
            return replace(scheme, group=None)
        case Linear(block=int() as block) if weight.array.shape[1] % block:
            return replace(scheme, block=None)
        case Sparse(then=then) if then is not None:
            return replace(scheme, then=_fitting(then, weight))
    return scheme


def together(parts: Sequence[Compressed]) -> Compressed:
    """Of a program's halves."""
    tensors, numbers = Counter[str](), Counter[str]()
    for part in parts:
        tensors.update(part.tensors)
        numbers.update(part.numbers)
    seconds, error = sum(part.table_seconds for part in parts), max(part.error for part in parts)
    return Compressed(dict(tensors), dict(numbers), seconds, error)


def _summary(weights: list[Weight], chosen: Mapping[str, Scheme], seconds: float, error: float) -> Compressed:
    tensors: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for weight in weights:
        what = said(chosen[weight.constant])
        tensors[what] = tensors.get(what, 0) + 1
        numbers[what] = numbers.get(what, 0) + weight.array.size
    return Compressed(tensors, numbers, seconds, error)


def said(scheme: Scheme) -> str:
    """In words."""
    match scheme:
        case None:
            return "as it was"
        case Palette(palette=bits, uniform=uniform, group=group, int8_table=small):
            kind = "even palette" if uniform else "palette"
            return f"{kind} {bits}" + (f", groups of {group}" if group else "") + (", int8 table" if small else "")
        case Linear(linear=bits, block=block):
            return f"int{bits}" + (f", blocks of {block}" if block else "")
        case Sparse(sparse=share, then=then):
            return f"sparse {share:g}" + (f", {said(then)}" if then else "")
    raise AssertionError(scheme)


def _prune(model: Any, chosen: Mapping[str, Scheme], tables: Tables) -> Any:
    import coremltools.optimize.coreml as cto

    configs = {
        name: cto.OpMagnitudePrunerConfig(target_sparsity=scheme.sparse, weight_threshold=SMALLEST)
        for name, scheme in chosen.items()
        if isinstance(scheme, Sparse)
    }
    return cto.prune_weights(model, _named(configs)) if configs else model


def _palettize(model: Any, chosen: Mapping[str, Scheme], tables: Tables) -> Any:
    import coremltools.optimize.coreml as cto

    plain = {name: scheme for name, scheme in chosen.items() if isinstance(scheme, Palette)}
    if plain:
        model = cto.palettize_weights(model, _named({n: _palette(s, tables) for n, s in plain.items()}))
    joined = {n: s.then for n, s in chosen.items() if isinstance(s, Sparse) and isinstance(s.then, Palette)}
    if joined:
        configs = {found: _palette(joined[n], tables) for n, found in _made_of(model, joined)}
        model = cto.palettize_weights(model, _named(configs), joint_compression=True)
    return model


def _quantize(model: Any, chosen: Mapping[str, Scheme], tables: Tables) -> Any:
    import coremltools.optimize.coreml as cto

    plain = {name: scheme for name, scheme in chosen.items() if isinstance(scheme, Linear)}
    if plain:
        model = cto.linear_quantize_weights(model, _named({n: _linear(s) for n, s in plain.items()}))
    joined = {n: s.then for n, s in chosen.items() if isinstance(s, Sparse) and isinstance(s.then, Linear)}
    if joined:
        configs = {found: _linear(joined[n]) for n, found in _made_of(model, joined)}
        model = cto.linear_quantize_weights(model, _named(configs), joint_compression=True)
    return model


def _quantize_tables(model: Any, chosen: Mapping[str, Scheme], tables: Tables) -> Any:
    import coremltools.optimize.coreml as cto

    small = {name: scheme for name, scheme in chosen.items() if isinstance(scheme, Palette) and scheme.int8_table}
    if not small:
        return model
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_tensor", weight_threshold=1)
    return cto.linear_quantize_weights(
        model, _named({found: config for _, found in _made_of(model, small)}), joint_compression=True
    )


def _named(configs: dict[str, Any]) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.OptimizationConfig(global_config=None, op_name_configs=configs)


def _palette(scheme: Palette, tables: Tables) -> Any:
    import coremltools.optimize.coreml as cto

    grouped = {} if scheme.group is None else {"granularity": "per_grouped_channel", "group_size": scheme.group}
    return cto.OpPalettizerConfig(
        mode="custom", lut_function=tables.function(scheme), weight_threshold=SMALLEST, **grouped
    )


def _linear(scheme: Linear) -> Any:
    import coremltools.optimize.coreml as cto

    mode = "linear_symmetric" if scheme.symmetric else "linear"
    blocks = {"granularity": "per_channel"}
    if scheme.block is not None:
        blocks = {"granularity": "per_block", "block_size": scheme.block}
    return cto.OpLinearQuantizerConfig(mode=mode, dtype=f"int{scheme.linear}", weight_threshold=SMALLEST, **blocks)


def _made_of(model: Any, constants: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The operators that restore these constants now, by the name that they are configured by."""
    for op in _program(model).functions["main"].operations:
        if op.op_type.startswith("constexpr_"):
            base = next((n for n in constants if op.name.startswith(f"{n}_") or op.name == n), None)
            if base is not None:
                yield base, op.name
