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

from kdc_edge import Pipeline, golden
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import read_header
from kdc_edge.pipeline import DEFAULT_BUNDLE

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / "apps" / "node_modules"
CORE = ROOT / "apps" / "web" / "static" / "core"
LEVELS = 2  # of 255: another onnxruntime adds up in another order


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


def test_javascript(tmp_path):
    if shutil.which("node") is None or not (NODE_MODULES / "onnxruntime-web").is_dir():
        pytest.skip("no node, or no onnxruntime-web for it: npm ci --prefix apps")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "bundle").symlink_to(DEFAULT_BUNDLE)
    shutil.copytree(CORE, tmp_path / "core")
    (tmp_path / "draw.mjs").write_text(snippet("javascript"), encoding="utf-8")
    command = ["node", "--preserve-symlinks", "draw.mjs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"step {i} of 4\n" for i in range(1, 5))
    drawn = np.fromfile(tmp_path / "apple.rgba", np.uint8).reshape(64, 64, 4)
    with Pipeline.open(DEFAULT_BUNDLE) as pipe:
        wanted = np.asarray(pipe.generate("red apple", seed=3).convert("RGBA"))
    assert np.abs(drawn.astype(int) - wanted).max() <= LEVELS


def test_a_sample_is_some_ten_lines():
    """Without blank lines and closing brackets."""
    for language in ("python", "javascript", "kotlin", "swift", "cpp"):
        assert len(re.findall(r"\w.*", snippet(language))) <= 11, language


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
