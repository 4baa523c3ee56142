"""What of this project runs here: the packages each extra needs, against the versions it was tested with."""

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdc_edge import machine

HERE = Path(__file__).parent
CONSTRAINTS = (HERE / "data" / "constraints.txt", HERE.parent / "constraints.txt")  # in a wheel, in a checkout
NAME = re.compile(r"^[A-Za-z0-9._-]+")
EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
DEVELOPMENT = "dev"


@dataclass(frozen=True)
class Package:
    """One requirement: who wants it, what is installed, what was tested; None where there is none.

    `by` is the distribution that is installed, which may be another one of the same module.
    """

    name: str
    extra: str
    installed: str | None
    tested: str | None
    by: str | None

    @property
    def state(self) -> str:
        if self.installed is None:
            others = machine.OTHERS.get(self.name, ())
            return f"not installed, nor {', '.join(others)}" if others else "not installed"
        if self.tested is None:
            state = "no tested version"
        else:
            state = "as tested" if self.installed.split("+")[0] == self.tested else "untested version"
        return state if self.by == self.name else f"{state}, as {self.by}"


def packages() -> list[Package]:
    """Every package the distribution names, by extra; none where it runs from a checkout that is not installed."""
    try:
        requirements = importlib.metadata.requires("kdc-edge") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    tested = dict(_tested())
    wanted = sorted({(_extra(line), _normal(line)) for line in requirements})
    return [_package(name, extra, tested.get(name)) for extra, name in wanted if extra != DEVELOPMENT]


def _package(name: str, extra: str, tested: str | None) -> Package:
    found = machine.versions((name, *machine.OTHERS.get(name, ())))
    by = next(iter(found), None)
    return Package(name, extra, None if by is None else found[by], tested, by)


def _tested() -> Iterator[tuple[str, str]]:
    path = next((path for path in CONSTRAINTS if path.exists()), None)
    for line in path.read_text(encoding="utf-8").splitlines() if path else ():
        name, separator, version = line.partition("==")
        if separator and not line.startswith("#"):
            yield _normal(name), version.strip()


def _extra(requirement: str) -> str:
    match = EXTRA.search(requirement)
    return match.group(1) if match else "core"


def _normal(requirement: str) -> str:
    match = NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else requirement
