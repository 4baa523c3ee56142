"""The app's site over the shipped bundle, servers for it, and a real Chromium to open it in."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from apps.web import measure
from apps.web.server import Server
from apps.web.site import MODULES, ORT, build
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.bench import browser as chromium

FLAGS = [*measure.FLAGS, *measure.GRAPHICS["wasm"]]
FLAGS += ["--host-resolver-rules=MAP lan.test 127.0.0.1"]  # a name that is neither https nor localhost
READY, PROBLEM = "body[data-ready]", "#status[data-kind=problem]"


@pytest.fixture(scope="session")
def modules() -> Path:
    if not (MODULES / ORT).is_dir():
        pytest.skip("no onnxruntime-web here; npm ci --prefix apps")
    return MODULES


@pytest.fixture(scope="session")
def site(shared, modules) -> Path:
    """The shipped bundle's site. Read-only."""
    return shared("web-site", lambda folder: build(Bundle.open(DEFAULT_BUNDLE), folder))


@contextmanager
def serving(folder: Path, port: int = 0, **settings: Any) -> Iterator[str]:
    with Server(folder, "127.0.0.1", port, **settings) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server.url
        server.shutdown()


@pytest.fixture(scope="session")
def url(site) -> Iterator[str]:
    with serving(site) as url:
        yield url


@pytest.fixture
def own_site(site, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(site, tmp_path / "site", copy_function=_link)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here; pip install 'kdc-edge[dev]'")
    chromium.find()
    with api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright) -> Iterator[Any]:
    started = playwright.chromium.launch(executable_path=chromium.find(), args=FLAGS)
    yield started
    started.close()


@dataclass
class Opened:
    """A page, and what it wrote to the console: errors alone, of whichever part."""

    page: Any
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(30_000)

    def ready(self, url: str) -> "Opened":
        self.page.goto(url)
        self.page.wait_for_selector(READY)
        return self

    def draw(self, prompt: str, seed: int = 0, steps: int = 1) -> str:
        """Types, presses Enter, waits; the status line. The picture is the gallery's first."""
        before = self.page.locator("#gallery li").count()
        self.page.fill("#seed", str(seed))
        self.page.fill("#steps", str(steps))
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")
        self.page.wait_for_selector(f"#gallery li:nth-child({before + 1})")
        self.page.wait_for_selector("#draw:visible")
        return self.status()

    def empty(self) -> None:
        """Its gallery."""
        if self.page.is_visible("#clear"):
            self.page.click("#clear")
            self.page.wait_for_selector("#gallery-empty:visible")

    def status(self) -> str:
        return self.page.inner_text("#status")

    def pixels(self) -> list[int]:
        """Red, green, blue of the newest picture, row by row."""
        return self.page.evaluate("""() => {
            const canvas = document.querySelector("#gallery canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [...data].filter((_, i) => i % 4 !== 3);
        }""")


@pytest.fixture
def open_page(browser) -> Iterator[Any]:
    """`open_page(**context settings)`: a page with a profile of its own; the test fails if its console has an error."""
    contexts, pages = [], []

    def opened(script: str = "", **settings: Any) -> Opened:
        context = browser.new_context(**settings)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        pages.append(Opened(context.new_page()))
        return pages[-1]

    yield opened
    for context in contexts:
        context.close()
    assert [error for page in pages for error in page.errors] == []


class Visited:
    """A browser profile on disk that has been here before, and the server it was at; either can go away and come back."""

    def __init__(self, chromium_type: Any, site: Path, folder: Path) -> None:
        self.type, self.site, self.folder, self.port = chromium_type, site, folder, 0
        self.kept: Opened | None = None
        self.serve()
        self.start()

    def serve(self) -> None:
        self.server = ExitStack()
        self.url = self.server.enter_context(serving(self.site, self.port))
        self.port = urlsplit(self.url).port or 0

    def start(self) -> None:
        rights = ["clipboard-read", "clipboard-write"]
        self.context = self.type.launch_persistent_context(
            str(self.folder), executable_path=chromium.find(), args=FLAGS, permissions=rights
        )

    def restart(self) -> None:
        self.context.close()
        self.start()

    @contextmanager
    def without_server(self) -> Iterator[None]:
        self.server.close()
        yield
        self.serve()

    def page(self) -> Opened:
        """The app, just loaded."""
        opened = Opened(self.context.new_page())
        opened.page.on("dialog", lambda dialog: dialog.accept())
        return opened.ready(self.url)

    def warm(self) -> Opened:
        """The page that stays open from test to test: its WebAssembly is compiled for speed by now."""
        if self.kept is None or self.kept.page.is_closed() or not self.kept.page.is_visible("#draw"):
            self.kept = self.page()
        return self.kept

    def close(self) -> None:
        self.context.close()
        self.server.close()


@pytest.fixture(scope="module")
def visited(playwright, site, tmp_path_factory) -> Iterator[Visited]:
    visited = Visited(playwright.chromium, site, tmp_path_factory.mktemp("profile"))
    yield visited
    visited.close()


@pytest.fixture
def ready(visited) -> Iterator[Opened]:
    """The app in `visited`, ready to draw, gallery empty, maybe used before; the test fails if its console has an error."""
    opened = visited.warm()
    opened.errors.clear()
    yield opened
    opened.empty()
    assert opened.errors == []


@pytest.fixture
def fresh(visited) -> Iterator[Opened]:
    """As `ready`, in a page of its own that was just loaded."""
    opened = visited.page()
    yield opened
    opened.empty()
    opened.page.close()
    assert opened.errors == []
