"""A real Chromium, headless: what a page logs, and what became of it."""

import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from apps.web import measure
from kdc_edge.errors import MissingBackend

PHONE, DESKTOP = 360, 1200
FRAMED = """<!doctype html><title>none</title><body>{frames}<script>
addEventListener("load", () => {{
  document.title = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, root = page.documentElement;
    const drawn = [...page.querySelectorAll("[data-chart]")].filter((place) => place.querySelector("svg path, svg rect, svg circle"));
    return [root.scrollWidth - root.clientWidth, drawn.map((place) => place.dataset.chart).join("+")].join(":");
  }}).join(",");
}});
</script>"""  # noqa: E501


@dataclass(frozen=True)
class Seen:
    """Of one width: pixels that stick out to the side, and which charts have something drawn in them."""

    beyond: int
    charts: tuple[str, ...]


def find() -> str:
    """Skips the test, saying why, where there is none."""
    try:
        return measure.find()
    except MissingBackend:
        pytest.skip("no Chromium here; `make system-deps` as root installs it")


def look(page: Path, folder: Path) -> tuple[list[Seen], list[str]]:
    """The page on a phone and on a desk, side by side in one tab, and every line it wrote to the console."""
    frames = "".join(
        f'<iframe src="{escape(page.resolve().as_uri())}" style="width:{width}px;height:900px;border:0"></iframe>'
        for width in (PHONE, DESKTOP)
    )
    outer = folder / "framed.html"
    outer.write_text(FRAMED.format(frames=frames), encoding="utf-8")
    flags = [*measure.FLAGS, *measure.GRAPHICS["wasm"]]
    flags += ["--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [find(), *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    seen = []
    for part in title.split(","):
        width, _, charts = part.partition(":")
        seen.append(Seen(int(width), tuple(filter(None, charts.split("+")))))
    return seen, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
