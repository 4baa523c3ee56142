"""Measure a bundle in this machine's browser, headless: `python -m apps.web.measure BUNDLE -o record.json`. Half a minute.

The page measures and posts its record (docs/bench.md); here it is told which processor it ran on, which no page may know.
`bench run --browser` starts this as a child process.
"""

import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlencode

import tyro

from apps.web.server import Server
from apps.web.site import MODULES, build
from kdc_edge import command, machine
from kdc_edge.bundle import Bundle
from kdc_edge.errors import GateError, MissingBackend
from kdc_edge.files import write_json

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FLAGS += ["--disable-quic", "--disable-dev-shm-usage", "--no-sandbox"]  # the page is our own
GRAPHICS = {"wasm": ["--disable-gpu"], "webgpu": ["--enable-unsafe-webgpu"]}


@dataclass(frozen=True)
class MeasureConfig:
    """What to measure, and how."""

    bundle: tyro.conf.Positional[Path]
    """ONNX bundle folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("record.json")
    """File for the record."""
    samples: int = 30
    """Warm calls of each component; the whole picture gets a third."""
    threads: int | None = None
    """Of WebAssembly; the page's own choice if not given."""
    provider: Literal["wasm", "webgpu"] = "wasm"
    timeout: float = 600.0
    """Seconds to wait for the page."""
    browser: str | None = None
    """Program to start; None looks for Chromium and Chrome."""
    node_modules: Path = MODULES
    """Where onnxruntime-web and @huggingface/tokenizers are installed."""


def measure(config: MeasureConfig) -> dict[str, Any]:
    """Latency of a bundle in this machine's browser."""
    program, bundle = find(config.browser), Bundle.open(config.bundle)
    answers: queue.Queue[bytes] = queue.Queue()
    told = {"post": "", "samples": config.samples, "provider": config.provider}
    told |= {} if config.threads is None else {"threads": config.threads}
    with tempfile.TemporaryDirectory(prefix="kdc-web-") as folder:
        site = Path(folder) / "site"
        build(bundle, site, config.node_modules)
        with serving(Server(site, "127.0.0.1", 0, receive=answers.put)) as url:
            arguments = [program, *FLAGS, *GRAPHICS[config.provider], f"--user-data-dir={folder}/profile"]
            with browsing([*arguments, f"{url}bench.html?{urlencode(told)}"]):
                record = wait(answers, config.timeout)
    described = machine.describe()
    record["machine"] = {**record["machine"], **described, "python": None}
    record["fingerprint"] = machine.fingerprint(described)
    write_json(config.output, record)
    print(f"{config.output}", file=sys.stderr)
    return {"record": str(config.output)}


def find(name: str | None = None) -> str:
    """A browser's path. MissingBackend where there is none."""
    found = next(filter(None, map(shutil.which, NAMES if name is None else (name,))), None)
    if found is None:
        raise MissingBackend(
            f"no {name or 'Chromium or Chrome'} here; on Debian: apt-get install chromium; else --browser PATH"
        )
    return found


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The server's address while it runs in a thread."""
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.url
        finally:
            server.shutdown()


@contextmanager
def browsing(arguments: list[str]) -> Iterator[None]:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(answers: "queue.Queue[bytes]", timeout: float) -> dict[str, Any]:
    """What the page measured. GateError where it says that something failed, or nothing."""
    try:
        answer: dict[str, Any] = json.loads(answers.get(timeout=timeout))
    except queue.Empty:
        raise GateError(
            f"the page has not answered for {timeout:.0f} s; wait longer (--timeout), or open bench.html yourself"
        ) from None
    if "problem" in answer:
        problem = f"the page says: {answer['problem']}"
        raise MissingBackend(problem) if answer.get("kind") == "backend" else GateError(problem)
    return answer


def main(argv: Sequence[str] | None = None) -> NoReturn:
    command.run(measure, argv, prog="python -m apps.web.measure")


if __name__ == "__main__":
    main()
