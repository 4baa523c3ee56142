"""--exclude, held against the layers that there are before any work is done."""

from collections.abc import Mapping, Sequence

from convert.export import layer_names
from convert.schemes import Scheme, below_16, excluded
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError, suggest
from kdc_edge.process import in_own_process


def check(patterns: Sequence[str], checkpoint: Checkpoint, schemes: Mapping[str, Scheme], precision: str) -> None:
    """Raises UsageError where no layer is made small, and for a pattern that fits none of those that are."""
    if not patterns:
        return
    small = [name for name, scheme in schemes.items() if below_16(scheme)]
    if not small:
        raise UsageError(f"--exclude keeps layers at more bits; with --precision {precision} all have them")
    layers = in_own_process("reading the layers' names", layer_names, checkpoint.path, small)
    operators = sorted({operator for _, operator in layers})
    for pattern in patterns:
        if not any(excluded(name, operator, [pattern]) for name, operator in layers):
            near = suggest(pattern, [*operators, *(name for name, _ in layers)])
            raise UsageError(
                f"--exclude {pattern} fits no layer of {', '.join(small)}; operators are {', '.join(operators)}{near}"
            )
