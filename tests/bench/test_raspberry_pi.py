"""docs/raspberry-pi.md, run line by line: what installs by fakes that check their arguments, the rest for real."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from bench import record

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "raspberry-pi.md").read_text(encoding="utf-8"), re.DOTALL)
FAKES = {
    "sudo": 'exec "$@"',
    "apt-get": '[ "$1" = install ]',
    "git": '[ "$1 $2" = "clone $KDC_EDGE" ] && mkdir -p "$3/kdc_edge/data" && ln -s "$BUNDLE" "$3/kdc_edge/data/emoji-64"',
    "python3": '[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && touch "$3/bin/activate"',
    "pip": 'printf "%s\\n" "$@" > "$PIP"',
    "python": f'export PYTHONPATH={ROOT}; exec {sys.executable} "$@"',
    "kdc-edge": f'export PYTHONPATH={ROOT}; exec {sys.executable} -m kdc_edge "$@"',
}


@pytest.fixture(scope="module")
def ran(hand_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two blocks in an empty folder, the soak shortened to a second; the folder."""
    folder = tmp_path_factory.mktemp("pi")
    (folder / "bin").mkdir()
    for name, body in FAKES.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    script = "set -eu\n" + "\n".join(BLOCKS[:2]).replace("--soak 10m", "--soak 1s")
    env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "KDC_EDGE": "somewhere", "BUNDLE": str(hand_bundle)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=env | {"PIP": str(folder / "pip"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_it_ends_with_a_row_and_a_page(ran: Path) -> None:
    runs = ran / "kdc-edge" / "runs"
    (path,) = (runs / "pi").glob("2*.json")
    found = record.read(path)
    assert found.complete and found.settings.threads == 4 and sum(minute.pictures for minute in found.soak) > 1
    assert "hand fp32" in (runs / "pi" / "summary.md").read_text()
    page = (runs / "pi.html").read_text(encoding="utf-8")
    assert found.bundle["id"] in page and "Raspberry Pi 5" in page


def test_what_it_installs_exists(ran: Path) -> None:
    *_, what = (ran / "pip").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.fullmatch(r"\.\[(.*)\]", what).group(1).split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert not [
        name for extra in extras for name in project["optional-dependencies"][extra] if name.startswith("torch")
    ]


def test_the_roofline_it_quotes_is_the_estimate() -> None:
    text = (ROOT / "docs" / "raspberry-pi.md").read_text(encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "bench",
        "estimate",
        "kdc_edge/data/emoji-64",
        "--device",
        "raspberry-pi-5",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    (found,) = json.loads(done.stdout)["estimates"]
    assert f"at least {found['picture_s'] * 1e3:.0f} ms a picture" in text
