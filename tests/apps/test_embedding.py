"""docs/embedding.md and docs/conformance.md say what is so: their code runs, their sizes and bytes are the bundle's."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdc_edge import golden
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import read_header
from kdc_edge.pipeline import DEFAULT_BUNDLE

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / "apps" / "node_modules"
DRAW = """
const { argv } = await import("node:process");
const { writeFile } = await import("node:fs/promises");
const bytes = await readFile(argv[3]);
const noise = Array.from(new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4));
await writeFile(argv[4], await draw(argv[2], "red apple", noise));
"""


def snippet(language, page="embedding"):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def vectors():
    return golden.read(Bundle.open(DEFAULT_BUNDLE))


def test_python(tmp_path):
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet("python")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("".join(f"step {i} of 4\n" for i in range(1, 5)), "")
    assert (tmp_path / "apple.png").stat().st_size > 1000


def test_javascript(tmp_path, vectors):
    if shutil.which("node") is None or not (NODE_MODULES / "onnxruntime-web").is_dir():
        pytest.skip("no node, or no onnxruntime-web for it: npm ci --prefix apps")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "draw.mjs").write_text(snippet("javascript") + DRAW, encoding="utf-8")
    vectors.arrays["noise"][0].tofile(tmp_path / "noise.bin")
    command = ["node", "--preserve-symlinks", "draw.mjs", str(DEFAULT_BUNDLE), "noise.bin", "rgb.bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    drawn = np.fromfile(tmp_path / "rgb.bin", np.uint8).reshape(3, 64, 64).transpose(1, 2, 0)
    off = np.abs(drawn.astype(int) - vectors.arrays["images"][0])
    assert off.max() <= vectors.settings.tolerances["images"]
    assert off.mean() < 1


@pytest.mark.parametrize(("language", "suffix"), [("swift", ".swift"), ("kotlin", ".kt")])
def test_the_others_parse(language, suffix):
    from tests.apps.test_syntax import errors

    assert errors(snippet(language).encode(), suffix) is None


def test_the_lock_file_names_no_host():
    assert "://" not in "".join(
        line for line in (ROOT / "apps" / "package-lock.json").read_text().splitlines() if '"resolved"' in line
    )


def test_the_results_file_shown_is_the_bundle_s(vectors):
    shown = json.loads(snippet("json", "conformance"))
    assert shown["bundle"] == Bundle.open(DEFAULT_BUNDLE).id
    sigmas = np.frombuffer(base64.b64decode(shown["stages"]["sigmas"]["data"]), "<f4")
    assert np.array_equal(sigmas, vectors.arrays["sigmas"])


def test_the_bytes_are_where_the_page_says(vectors):
    path = DEFAULT_BUNDLE / golden.VECTORS
    data = path.read_bytes()
    n, begin = int.from_bytes(data[:8], "little"), read_header(path)["noise"]["data_offsets"][0]
    p, c, h, w = 1, 5, 3, 2
    at = 8 + n + begin + 4 * (((p * 16 + c) * 8 + h) * 8 + w)
    assert np.frombuffer(data[at : at + 4], "<f4")[0] == vectors.arrays["noise"][p, c, h, w]


def test_the_page_has_every_stage_and_array():
    from kdc_edge.conformance import STAGES

    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    for name in (*STAGES, *golden.DTYPES):
        assert f"`{name}`" in page
