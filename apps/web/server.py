"""A file server for one folder: the two headers that let a page use threads, byte ranges, and a place to post results to."""

import re
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kdc_edge.errors import UsageError

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
    "Accept-Ranges": "bytes",
}
TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
RESULTS, MOST = "/results", 64 << 20  # bytes
Receive = Callable[[bytes], None]


class Handler(SimpleHTTPRequestHandler):
    """GET and HEAD of files; POST of results, where somebody receives them."""

    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES | {".webmanifest": "application/manifest+json"}

    def __init__(self, *args: Any, headers: dict[str, str], receive: Receive | None, **kwargs: Any) -> None:
        self.extra, self.receive = headers, receive
        super().__init__(*args, **kwargs)

    def end_headers(self) -> None:
        for name, value in self.extra.items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """A byte range where one is asked for of a file that has it; else the file."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().send_head()
        size = path.stat().st_size
        first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        if first > last:
            self.send_error(416)
            return None
        self.send_response(206)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last - first + 1))
        return None

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != RESULTS or self.receive is None or length > MOST:
            self.send_error(404)
            return
        self.receive(self.rfile.read(length))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a person watches the page, not this."""


class Server(ThreadingHTTPServer):
    """Serves `folder`; port 0 takes a free one. `isolated` False leaves the headers out, as most hosts do."""

    daemon_threads = True

    def __init__(
        self, folder: Path, host: str, port: int, *, isolated: bool = True, receive: Receive | None = None
    ) -> None:
        headers = {name: value for name, value in HEADERS.items() if isolated or not name.startswith("Cross-Origin")}
        handler = partial(Handler, directory=str(folder), headers=headers, receive=receive)
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise UsageError(
                f"cannot serve on {host}:{port} ({error.strerror}); choose another --port or --host"
            ) from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{'localhost' if host == '127.0.0.1' else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a file is no error."""
