import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from kdc_edge import command
from kdc_edge.errors import BundleError, GateError, MissingBackend, ResourceError, UsageError


@dataclass(frozen=True)
class Config:
    """A config."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    force: bool = False


def greet(config: Config) -> dict:
    """Say hello."""
    print("some words")
    return {"names": list(config.names), "output": str(config.output_dir), "force": config.force}


def silent(config: Config) -> None:
    """Say nothing."""


def call(commands, *argv):
    with pytest.raises(SystemExit) as caught:
        command.run(commands, argv, prog="prog")
    return caught.value.code


def failing(error):
    def fail(config: Config) -> None:
        raise error

    return fail


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


def test_result_is_the_last_line_only_with_json(capsys):
    assert call(greet, "a", "b", "--json", "--force", "-o", "x") == 0
    words, last = capsys.readouterr().out.splitlines()
    assert words == "some words" and json.loads(last) == {"names": ["a", "b"], "output": "x", "force": True}
    assert call(greet, "--output-dir", "y") == 0
    assert capsys.readouterr().out == "some words\n"


def test_a_command_without_a_result(capsys):
    assert call(silent, "--json") == 0
    assert capsys.readouterr().out == "{}\n"


def test_subcommands(capsys):
    both = {"greet": greet, "silent": silent}
    assert call(both, "greet", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["names"] == ["x"]
    assert call(both, "--help") == 0
    assert "Say hello." in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--forec"], ["--output-dir"], ["nonsense"]])
def test_what_cannot_be_parsed_is_usage(argv, capsys):
    assert call({"greet": greet, "silent": silent}, *argv) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateError("e"), 1),
        (UsageError("e"), 2),
        (MissingBackend("e"), 3),
        (ResourceError("e"), 4),
        (BundleError("e"), 5),
        (KeyboardInterrupt(), 130),
        (MemoryError("e"), 4),
        (OutOfMemoryError("e"), 4),
        (OSError(errno.ENOSPC, "No space left"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
    ],
)
def test_errors_become_one_line_and_a_code(error, code, capsys):
    assert call(failing(error), "--json") == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert json.loads(out) == {"error": err[7:-1], "kind": type(error).__name__, "exit_code": code}


def test_debug_shows_the_traceback(capsys):
    assert call(failing(BundleError("e")), "--debug") == 5
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: e\n")


def test_what_nobody_planned_for_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command.run(failing(ZeroDivisionError()), [], prog="prog")


def test_an_interrupted_system_call_without_a_file_is_not_hidden():
    with pytest.raises(OSError, match="Bad"):
        command.run(failing(OSError(errno.EBADF, os.strerror(errno.EBADF))), [], prog="prog")
