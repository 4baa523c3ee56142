"""`make demo`, as a newcomer runs it: within its ten minutes, and its page shows what it promises."""

import html
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = [
    *("The answer", "The same prompts, the same noise", "Size, quality, latency", "How fast, call by call"),
    *("Where a picture's time goes", "Size and memory", "How good", "Parity with PyTorch fp32", "Every device"),
    *("Training", "Do it again"),
]
PROMPTS, BUNDLES = 12, 3


@pytest.mark.slow
def test_the_demo_ends_with_its_page(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    installed = tmp_path / "installed"
    installed.touch()
    command = ["make", "demo", f"VENV={sys.prefix}", f"STAMP={installed}"]  # this environment, as it is
    start = time.monotonic()
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.monotonic() - start < 600
    page = (clone / "demo" / "report.html").read_text(encoding="utf-8")
    assert [html.unescape(title) for title in re.findall("<h2>(.*?)</h2>", page)] == SECTIONS
    assert page.count("data:image/png;base64,") == PROMPTS * BUNDLES
    answers = [card.partition("</article>")[0] for card in page.split('<article class="card')[1:]]
    assert [re.search("> *(measured|estimated)</span>", card).group(1) for card in answers] == ["measured"] + 4 * [
        "estimated"
    ]
    assert all(re.search(r"how good</dt><dd>[^<]*\d+%", card) for card in answers)
