"""`make demo`, as a newcomer runs it: within its ten minutes, and its page shows what it promises."""

import html
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdc_edge.files import read_json

ROOT = Path(__file__).parents[1]
SECTIONS = [
    *("The answer", "The same prompts, the same noise", "Size, quality, latency", "How fast, call by call"),
    *("Where a picture's time goes", "Size and memory", "How good", "Parity with PyTorch fp32", "Every device"),
    *("Training", "Do it again"),
]
PROMPTS, BUNDLES = 12, 3


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    make(folder, 600, "demo")
    return folder


def make(clone: Path, seconds: float, *arguments: str) -> None:
    """In time, with this environment as it is."""
    installed = clone / ".git" / "installed"
    installed.touch()
    command = ["make", *arguments, f"VENV={sys.prefix}", f"STAMP={installed}"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=1.5 * seconds, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.monotonic() - start < seconds


def test_the_demo_ends_with_its_page(clone: Path) -> None:
    page = (clone / "demo" / "report.html").read_text(encoding="utf-8")
    assert [html.unescape(title) for title in re.findall("<h2>(.*?)</h2>", page)] == SECTIONS
    assert page.count("data:image/png;base64,") == PROMPTS * BUNDLES
    answers = [card.partition("</article>")[0] for card in page.split('<article class="card')[1:]]
    assert [re.search("> *(measured|estimated)</span>", card).group(1) for card in answers] == ["measured"] + 4 * [
        "estimated"
    ]
    assert all(re.search(r"how good</dt><dd>[^<]*\d+%", card) for card in answers)


def test_its_full_form_shows_what_is_forgotten_and_what_is_kept(clone: Path) -> None:
    make(clone, 300, "--assume-old=demo", "demo-full")
    found = read_json(clone / "demo" / "comparison" / "results.json")["methods"]
    naive, replay = (found[name]["top1"]["forgetting"]["mean"] for name in ("naive", "replay"))
    assert replay < naive / 2 and naive > 0.5
    page = (clone / "demo" / "comparison" / "comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4, "two methods, two tasks"
