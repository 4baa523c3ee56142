"""The page in a real Chromium: from a text to a picture, every stage against the golden vectors, odd texts and seeds."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kdc_edge import golden
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.apps.web.conftest import PROBLEM, READY, Opened

VECTORS = golden.read(Bundle.open(DEFAULT_BUNDLE))


def golden_distance(pixels):
    wanted = VECTORS.arrays["images"][0]
    return np.abs(np.array(pixels).reshape(wanted.shape) - wanted.astype(int)).max()


@pytest.fixture(scope="module")
def results(visited, tmp_path_factory):
    """What the self-test page measured, as the file that it saves."""
    page = visited.context.new_page()
    opened = Opened(page)
    page.goto(f"{visited.url}check.html")
    page.wait_for_selector("body[data-outcome]")
    assert (page.get_attribute("body", "data-outcome"), opened.errors) == ("passed", [])
    assert page.locator("#rows tr").count() == 9
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(page.evaluate("window.results")), encoding="utf-8")
    page.close()
    return path


def test_every_stage_is_golden_by_the_library_s_own_judge(results):
    done = subprocess.run(
        [sys.executable, "-m", "kdc_edge", "conformance", str(DEFAULT_BUNDLE), "--results", str(results), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {stage["state"] for stage in told["stages"]} == {"passed"}
    assert "WebAssembly" in told["app"] or "Processor" in told["app"]


def test_a_text_becomes_a_picture_step_by_step(ready):
    page = ready.page
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => window.seen.push(document.getElementById("caption").textContent))
            .observe(document.getElementById("caption"), { childList: true });
    }""")
    assert ready.draw("red apple", seed=0) == "Done."
    assert page.evaluate("window.seen") == [*(f"Step {i} of 4" for i in (1, 2, 3)), "red apple · seed 0 · 4 steps"]
    assert page.locator("#film li").count() == 4
    assert golden_distance(ready.pixels()) <= 2
    page.click("#copy")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["command"] == "kdc-edge generate 'red apple' --seed 0 --steps 4"
    assert copied["bundle"] == Bundle.open(DEFAULT_BUNDLE).id
    with page.expect_download() as saving:
        page.click("#save")
    assert saving.value.suggested_filename == "red-apple-0.png"
    page.reload()
    page.wait_for_selector(READY)
    assert page.locator("#gallery li").count() == 1
    page.click("#gallery .remove", force=True)
    page.wait_for_selector("#gallery li", state="detached")
    assert page.is_visible("#gallery-empty")


def test_saving_memory_draws_the_same(ready):
    page = ready.page
    page.click("#device-button")
    page.check("#frugal")
    page.wait_for_selector("#device-label:has-text('saving memory')")
    page.click("#device button[value=close]")
    ready.draw("red apple", seed=0)
    assert golden_distance(ready.pixels()) <= 2
    assert page.evaluate("document.querySelector('#film canvas').width") == 8  # a sketch: no decoder was open
    page.evaluate("localStorage.clear()")


def test_a_text_too_long_is_cut_as_clip_does_and_it_says_so(ready):
    status = ready.draw("very long " * 60)
    assert status.startswith("Done. The text was too long: its last ")
    assert status.endswith("tokens were left out. Shorten it so that all of it counts.")


def test_no_text_draws_and_it_says_so(ready):
    assert ready.draw("").startswith("Done, without a text")
    assert ready.page.inner_text("#caption").startswith("(no text)")


def test_a_seed_that_is_none(ready):
    ready.page.fill("#seed", "")
    ready.page.evaluate(
        "document.getElementById('form').noValidate = true; document.getElementById('seed').value = '-1'"
    )
    ready.page.click("#draw")
    ready.page.wait_for_selector(PROBLEM)
    assert ready.status() == "The seed is -1; it must be a whole number from 0 to 4294967295."
