"""`bench run --browser`: the web app's benchmark page in this machine's browser, started as a child process."""

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import exports, record
from bench.record import NOT_MEASURED, Record
from kdc_edge import errors, machine
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError

MODULE = "apps.web.measure"


def run(
    bundles: tuple[Path, ...], output: Path, samples: int, threads: int | None, provider: str | None
) -> dict[str, Any]:
    """A record per bundle, as `bench run` writes them. Raises what the child says."""
    records, paths = [], []
    for index, bundle in enumerate([Bundle.open(path) for path in bundles]):
        found = _complete(_measure(bundle.path, samples, threads, provider), bundle)
        paths.append(record.path(output, found, index))
        record.write(paths[-1], found)
        records.append(found)
    print(exports.write_all(output, records), file=sys.stderr)
    return {"records": [str(path) for path in paths], "summary": str(output / exports.SUMMARY)}


def _measure(bundle: Path, samples: int, threads: int | None, provider: str | None) -> Record:
    flags = ["--samples", str(samples), "--json"]
    flags += [] if threads is None else ["--threads", str(threads)]
    flags += [] if provider is None else ["--provider", provider]
    with tempfile.TemporaryDirectory(prefix="kdc-bench-") as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, "-m", MODULE, str(bundle), "-o", str(path), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _error(done)
        return record.read(path)


def _error(done: "subprocess.CompletedProcess[str]") -> errors.KdcError:
    """The child's, from the JSON that ends its output; a UsageError with all it said where there is none."""
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        kind: type[errors.KdcError] = getattr(errors, told["kind"])
        return kind(told["error"])
    except (IndexError, ValueError, KeyError, AttributeError, TypeError):
        return UsageError(f"python -m {MODULE} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


def _complete(found: Record, bundle: Bundle) -> Record:
    """What the page does not know: how it was started, what the bundle's report says, and which code measured."""
    return replace(
        found,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        parity=bundle.report.get("parity", NOT_MEASURED),
        quality=bundle.report.get("quality", NOT_MEASURED),
        revision=machine.revision(),
        versions={**machine.versions(["kdc-edge"]), **found.versions},
    )
