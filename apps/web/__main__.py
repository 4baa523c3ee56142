"""`python -m apps.web`: serve the app, or write it as a folder for a static host. From an open page to a picture: seconds."""

import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from apps.web.server import Server
from apps.web.site import MODULES, build
from kdc_edge import command
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE


@dataclass(frozen=True)
class WebConfig:
    """What to serve, and where."""

    bundle: Path | None = None
    """ONNX bundle folder; None is the one that comes with this package."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write the app as static files into this folder, and stop."""
    host: str = "127.0.0.1"
    """0.0.0.0 lets other devices of the network open it; without https, browsers there use one thread and keep nothing."""
    port: int = 8000
    """0 takes a free one."""
    open: bool = False
    """Open the page in this machine's browser."""
    node_modules: Path = MODULES
    """Where onnxruntime-web and @huggingface/tokenizers are installed."""


def web(config: WebConfig) -> dict[str, Any]:
    """Serve the web app until Ctrl-C."""
    bundle = Bundle.open(DEFAULT_BUNDLE if config.bundle is None else config.bundle)
    if config.output_dir is not None:
        build(bundle, config.output_dir, config.node_modules)
        print(f"{config.output_dir}: serve it over https from any host", file=sys.stderr)
        return {"site": str(config.output_dir), "bundle": bundle.id}
    with tempfile.TemporaryDirectory(prefix="kdc-web-") as folder:
        build(bundle, Path(folder), config.node_modules)
        with Server(Path(folder), config.host, config.port) as server:
            print(
                f"{bundle.manifest.name} {bundle.manifest.precision} at {server.url}  (Ctrl-C ends it)",
                file=sys.stderr,
                flush=True,
            )
            if config.open:
                webbrowser.open(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
    return {"bundle": bundle.id}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    command.run(web, argv, prog="python -m apps.web")


if __name__ == "__main__":
    main()
