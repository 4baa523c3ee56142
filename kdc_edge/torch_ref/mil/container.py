"""A saved .mlpackage: found, read, and held against its own weight file before anything is loaded from it."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc_edge.errors import BundleError, MissingBackend, UsageError, choose
from kdc_edge.files import read_json
from kdc_edge.manifest import is_safe
from kdc_edge.torch_ref.mil.operators import OPERATORS
from kdc_edge.torch_ref.mil.weights import RESTORE
from kdc_edge.torch_ref.quiet import silent

AGAIN = "convert it again"
ENTRY = struct.Struct("<IIQQ")  # of a weight file: mark, type, bytes, offset; padded to 64
MARK = 0xDEADBEEF
Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Package:
    """A checked package."""

    path: Path
    spec: Any
    """coremltools' Model message."""
    weights: Path

    @classmethod
    def open(cls, path: Path | str) -> "Package":
        """Raises BundleError naming what is missing or damaged, MissingBackend without coremltools."""
        path = Path(path)
        model = _model(path)
        package = cls(path, _read(model), model.parent / "weights")
        for function in package.functions:
            _check_operators(package, function)
            _check_weights(package, function)
        return package

    @property
    def functions(self) -> dict[str, Any]:
        """The functions' messages by name, the default one first."""
        functions = self.spec.mlProgram.functions
        default = self.spec.description.defaultFunctionName or "main"
        return {name: functions[name] for name in sorted(functions, key=lambda name: (name != default, name))}

    def function(self, name: str | None = None) -> str:
        """`name`, or the default function. Raises UsageError."""
        return next(iter(self.functions)) if name is None else choose(name, self.functions, "function")

    def shapes(self, function: str) -> dict[str, Shape]:
        """Of a function's inputs; None is a free size."""
        return {
            port.name: tuple(_size(dimension) for dimension in port.type.tensorType.dimensions)
            for port in self.functions[function].inputs
        }

    def fitting(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """The function that takes arrays of these shapes. Raises UsageError, with the shapes there are."""
        known = {name: self.shapes(name) for name in self.functions}
        for name, wanted in known.items():
            if wanted.keys() <= shapes.keys() and all(_fits(shapes[port], wanted[port]) for port in wanted):
                return name
        raise UsageError(f"{self.path} takes {' or '.join(map(_said, known.values()))}, was given {_said(shapes)}")

    def load(self, function: str) -> Any:
        """coremltools' program of one function, weights as they are stored. Raises BundleError."""
        with silent():
            from coremltools.converters.mil.frontend.milproto.load import load

            spec = type(self.spec)()
            spec.CopyFrom(self.spec)
            for name in [name for name in spec.mlProgram.functions if name != function]:
                del spec.mlProgram.functions[name]
            try:
                return load(spec, spec.specificationVersion, file_weights_dir=str(self.weights)).functions[function]
            except Exception as error:  # whatever a damaged file makes the library raise
                message = next(iter(str(error).splitlines()), type(error).__name__)
                raise BundleError(f"{self.path}: coremltools cannot read it: {message}; {AGAIN}") from error


def operations(function: Any) -> Any:
    """Of a function's message, in the order they run."""
    return function.block_specializations[function.opset].operations


def _model(path: Path) -> Path:
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; a Core ML package is a folder that ends in .mlpackage")
    if not (path / "Manifest.json").is_file():
        raise BundleError(f"{path}: no Manifest.json in it, so it is no Core ML package; {AGAIN}")
    manifest = read_json(path / "Manifest.json")
    try:
        inside = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (KeyError, TypeError):
        raise BundleError(f"{path / 'Manifest.json'}: names no model; {AGAIN}") from None
    if not isinstance(inside, str) or not is_safe(inside):
        raise BundleError(f"{path / 'Manifest.json'}: points at '{inside}', outside the package; {AGAIN}")
    model = path / "Data" / inside
    if not model.is_file():
        raise BundleError(f"{model}: missing, the package's manifest lists it; {AGAIN}")
    return model


def require() -> Any:
    """The coremltools module. Raises MissingBackend."""
    with silent():
        try:
            import coremltools
        except ImportError:
            raise MissingBackend("coremltools is not installed; pip install 'kdc-edge[coreml]'") from None
    return coremltools


def _read(model: Path) -> Any:
    proto = require().proto
    try:
        spec = proto.Model_pb2.Model.FromString(model.read_bytes())
    except Exception as error:  # the parser's own class has no types
        raise BundleError(f"{model}: damaged, not a Core ML model: {error}; {AGAIN}") from error
    if (kind := spec.WhichOneof("Type")) != "mlProgram":
        raise BundleError(f"{model}: holds {kind or 'nothing'}, only an ML program can be executed; {AGAIN}")
    return spec


def _check_operators(package: Package, function: str) -> None:
    every = operations(package.functions[function])
    for place, operation in enumerate(every, 1):
        if operation.type != "const" and operation.type not in OPERATORS and operation.type not in RESTORE:
            name = operation.outputs[0].name if operation.outputs else "without output"
            where = f"{package.path}, function {function}, operator {place} of {len(every)} ({name})"
            raise BundleError(f"{where}: '{operation.type}' is not known here; known are {len(OPERATORS)} operators")


def _check_weights(package: Package, function: str) -> None:
    """Every weight lies whole in a file that is there."""
    sizes: dict[Path, int] = {}
    for name, blob in _blobs(package.functions[function]):
        file = package.weights / blob.fileName.split("/")[-1]
        if not file.is_file():
            raise BundleError(f"{file}: missing, {name} is stored in it; {AGAIN}")
        size = sizes.setdefault(file, file.stat().st_size)
        with file.open("rb") as stream:
            stream.seek(blob.offset)
            header = stream.read(ENTRY.size)
        if len(header) < ENTRY.size:
            raise BundleError(f"{file}: {size} bytes, {name} begins at {blob.offset}; {AGAIN}")
        mark, _, length, start = ENTRY.unpack(header)
        if mark != MARK or start + length > size:
            why = f"damaged at byte {blob.offset}" if mark != MARK else f"{size} bytes, {name} ends at {start + length}"
            raise BundleError(f"{file}: {why}; {AGAIN}")


def _blobs(function: Any) -> Iterator[tuple[str, Any]]:
    """(operator, place in a weight file) of all values that are stored outside the program."""
    for operation in operations(function):
        values = list(operation.attributes.values())
        values += [
            b.value for a in operation.inputs.values() for b in a.arguments if b.WhichOneof("binding") == "value"
        ]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                yield operation.outputs[0].name, value.blobFileValue


def _size(dimension: Any) -> int | None:
    return dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else None


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _said(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {'×'.join('any' if n is None else str(n) for n in s)}" for name, s in shapes.items())
