"""Versions that conversion is known to work with: others break it in ways that look like the model's fault."""

from convert.provenance import installed
from kdc_edge.errors import MissingBackend

# package → first version that works, first that was not tested or is known to fail
RANGES: dict[str, tuple[str, str]] = {
    "coremltools": ("9.0", "10"),
    "numpy": ("1.24", "2.4"),  # from 2.4 on coremltools 9 fails on one-element arrays
    "torch": ("2.6", "2.14"),
}


def require_tested() -> None:
    """Raises MissingBackend naming the package, both ends of its range and what to install."""
    for package, (first, end) in RANGES.items():
        found = installed(package)
        if found is not None and not _parts(first) <= _parts(found) < _parts(end):
            raise MissingBackend(
                f"{package} is {found}, conversion was tested from {first} to before {end}; "
                f"pip install '{package}>={first},<{end}', or pass --allow-untested"
            )


def _parts(version: str) -> tuple[int, ...]:
    numbers = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in numbers)
