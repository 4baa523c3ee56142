"""Rules of a replay buffer: how many bytes it may have, what stays of it, how latents are stored. No torch."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdc_edge.errors import UsageError
from kdc_edge.replay import About, Store, is_buffer, read

if TYPE_CHECKING:
    from train.sequences import ContinualConfig, ReplayConfig

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str) -> int:
    """`64MiB`, `100 kB`, `5000` → bytes. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    units = {name.upper(): size for name, size in UNITS.items()}
    unit = units.get((match[2] or "B").upper()) if match else None
    if match is None or unit is None:
        raise UsageError(f"'{text}' is no number of bytes; write 64MiB, 500KB or 100000")
    return round(float(match[1]) * unit)


def in_words(count: int) -> str:
    """Bytes as `parse_bytes` reads them, in the largest unit of which they are a whole number."""
    name, size = max((unit for unit in UNITS.items() if count % unit[1] == 0), key=lambda unit: unit[1])
    return f"{count // size}{name}"


@dataclass(frozen=True)
class Rules:
    """`limit` in bytes, 0 for no buffer at all; the defaults are those of a buffer that begins."""

    limit: int = 64 * UNITS["MiB"]
    policy: str = "reservoir"
    store: Store = "int8"

    @property
    def flags(self) -> dict[str, str]:
        """As they are given and recorded."""
        return {"replay_memory": in_words(self.limit), "policy": self.policy, "store": self.store}


def decided(chosen: "ReplayConfig", held: About | None = None) -> Rules:
    """A buffer's own, or what was chosen for one that begins. Raises UsageError for a choice that a buffer contradicts."""
    limit = None if chosen.replay_memory is None else parse_bytes(chosen.replay_memory)
    said = {"limit": limit, "policy": chosen.policy, "store": chosen.store}
    given = {name: value for name, value in said.items() if value is not None}
    if held is None:
        return replace(Rules(), **given)
    own = Rules(held.limit, held.policy, held.store)
    asked = replace(own, **given).flags
    for name, value in own.flags.items():
        if asked[name] != value:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"the buffer was begun with {flag} {value}, not {asked[name]}; give {flag} {value} or nothing, or another "
                "--buffer; the limit alone can be changed, by python -m train.buffer --replay-memory"
            )
    return own


def rules_of(config: "ContinualConfig") -> Rules:
    """Of a sequence: its buffer's, where there is one; joint training has none."""
    if not remembers(config):
        return Rules(0)
    return decided(config.replay, read(config.buffer).about if is_buffer(config.buffer) else None)


def remembers(config: "ContinualConfig") -> bool:
    """Whether anything is kept of a task."""
    return not config.joint and decided(config.replay).limit > 0
