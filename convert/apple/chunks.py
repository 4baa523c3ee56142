"""A program in two halves of equal weight, for devices that cannot hold it in one; one package for several sizes."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc_edge.errors import GateError, MissingBackend

DEFAULT = "main"


def halves(model: Any, folder: Path) -> list[Any]:
    """The first takes the inputs, the second them and what the first gives. Files lie in `folder` as long as they are needed.

    Raises MissingBackend: coremltools' splitter imports pytest.
    """
    import coremltools as ct

    try:
        ct.models.utils.bisect_model(model, str(folder), merge_chunks_to_pipeline=False, check_output_correctness=False)
    except ImportError as error:
        raise MissingBackend(f"--chunk needs {error.name}, which coremltools' splitter imports; install it") from None
    except ValueError as error:
        raise GateError(f"the program cannot be split: {error}; leave --chunk out") from error
    paths = sorted(folder.glob("*chunk[12].mlpackage"))
    return [ct.models.MLModel(str(path), skip_model_load=True) for path in paths]


def joined(models: Mapping[str, Any], target: Path) -> None:
    """Writes one package with a function for each model, weights that they share once; the first is the default."""
    import coremltools as ct

    with tempfile.TemporaryDirectory() as folder:
        functions = ct.utils.MultiFunctionDescriptor()
        for name, model in models.items():
            path = str(Path(folder) / f"{name}.mlpackage")
            model.save(path)
            functions.add_function(path, src_function_name="main", target_function_name=name)
        functions.default_function_name = next(iter(models))
        ct.utils.save_multifunction(functions, str(target))


def function_name(height: int, width: int) -> str:
    """Of a size of latents."""
    return f"h{height}w{width}"
