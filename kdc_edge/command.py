"""From a function to a command: flags from its config, exit codes from its errors, one line of JSON from its result.

    command.run({"generate": generate, "inspect": inspect}, argv, prog="kdc-edge")

Each function takes one frozen dataclass and returns a JSON-able dict or None. `--json` and `--debug` exist everywhere.
"""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from kdc_edge.errors import KdcError, ResourceError, UsageError
from kdc_edge.files import disk_full

T = TypeVar("T")
Command = Callable[[Any], "dict[str, Any] | None"]
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


@dataclass(frozen=True)
class Everywhere:
    """Flags of every command."""

    json: bool = False
    """End stdout with one JSON object."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class _Call:
    function: Command
    config: Any
    everywhere: Everywhere


def run(
    commands: Mapping[str, Command] | Command,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> NoReturn:
    """Parse, call, print and exit: 0 done, 1-5 as `errors` draws them, 130 interrupted."""
    call = guard(lambda: _parse(commands, argv, prog, description))  # settings refuse what cannot be meant
    result = guard(lambda: call.function(call.config), call.everywhere)
    if call.everywhere.json:
        _print_json(result or {})
    sys.exit(0)


def guard(work: Callable[[], T], everywhere: Everywhere = Everywhere()) -> T:
    """The result of `work`; an error this project knows becomes its message and its exit code."""
    try:
        return work()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_report(error, everywhere))


def _parse(
    commands: Mapping[str, Command] | Command, argv: Sequence[str] | None, prog: str | None, description: str | None
) -> _Call:
    if callable(commands):
        return tyro.cli(_binder(commands), args=argv, prog=prog, description=description, config=STYLE)
    binders = {name: _binder(function) for name, function in commands.items()}
    return tyro.extras.subcommand_cli_from_dict(
        binders, args=argv, prog=prog, description=description, config=STYLE, sort_subcommands=False
    )


def _binder(function: Command) -> Callable[..., _Call]:
    """What tyro sees in place of `function`: same documentation, the common flags added, and a call that can wait."""
    hints = get_type_hints(function)
    config = next(hint for name, hint in hints.items() if name != "return")
    fields = [
        ("config", Annotated[config, tyro.conf.arg(name="")]),
        ("everywhere", Annotated[Everywhere, tyro.conf.arg(name="")]),
    ]

    def bind(config: Any, everywhere: Any) -> _Call:
        return _Call(function, config, everywhere)

    bind.__annotations__ = {**dict(fields), "return": _Call}
    bind.__doc__ = function.__doc__
    return bind


def _report(error: BaseException, everywhere: Everywhere) -> int:
    """One line on stderr and the exit code; an error nobody planned for is raised as it is."""
    known = _explain(error)
    if known is None:
        raise error
    if everywhere.debug:
        traceback.print_exception(error)
    code, message = known
    print(f"error: {message}", file=sys.stderr)
    if everywhere.json:
        _print_json({"error": message, "kind": type(error).__name__, "exit_code": code})
    return code


def _explain(error: BaseException) -> tuple[int, str] | None:
    if isinstance(error, KdcError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError.exit_code, f"out of memory: {error}; close other programs or use a smaller size"
    if disk_full(error):
        return ResourceError.exit_code, f"the disk is full: {error}; free some space"
    if isinstance(error, OSError) and error.filename is not None:
        return UsageError.exit_code, f"{error.filename}: {error.strerror}"
    return None


def _print_json(result: Mapping[str, Any]) -> None:
    data = dataclasses.asdict(result) if dataclasses.is_dataclass(result) and not isinstance(result, type) else result
    print(json.dumps(data, allow_nan=False), flush=True)
