"""The page in a real Chromium: from a text to a picture, the golden vectors, phone and keyboard, offline, installability."""

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
    assert ready.draw("red apple", steps=4) == "Done."
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


def test_another_seed_comes_by_itself_unless_it_is_kept_and_the_gallery_brings_one_back(ready):
    page = ready.page
    ready.draw("rocket", seed=5)
    page.click("#draw")
    page.wait_for_selector("#gallery li:nth-child(2)")
    assert page.input_value("#seed") != "5"
    page.click("#lock")
    kept = page.input_value("#seed")
    page.click("#draw")
    page.wait_for_selector("#gallery li:nth-child(3)")
    assert page.input_value("#seed") == kept
    page.click("#lock")
    page.locator("#ideas button").first.click()
    page.wait_for_selector("#gallery li:nth-child(4)")
    page.wait_for_selector("#draw:visible")
    page.click("#gallery li:nth-child(4) canvas")
    assert page.inner_text("#caption") == "rocket · seed 5 · 1 step"
    assert (page.input_value("#prompt"), page.input_value("#seed")) == ("rocket", "5")
    assert page.locator("#film li").count() == 0


def test_escape_stops_between_two_steps(ready):
    page = ready.page
    page.fill("#steps", "8")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stop:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#draw:visible")
    assert ready.status() == "Stopped; no picture was made."
    assert page.locator("#gallery li").count() == 0
    assert ready.draw("rocket") == "Done."


def test_everything_has_a_name_and_is_reached_by_keyboard(ready):
    page = ready.page
    ready.draw("rocket")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, a")].filter((element) => !(
        element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length)).map((e) => e.id)""")
    assert nameless == []
    page.evaluate("document.body.focus()")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"device-button", "prompt", "draw", "more", "steps", "seed", "lock", "save", "copy", "clear"} <= reached
    page.focus("#device-button")
    page.keyboard.press("Enter")
    assert page.is_visible("#device[open] #providers input:checked")
    page.keyboard.press("Escape")
    assert not page.is_visible("#device")
    assert page.get_attribute("#canvas", "aria-label").startswith("Picture: rocket")
    assert page.get_attribute("#status", "aria-live") == "polite"


def test_a_phone_of_360_pixels_shows_all_of_it(fresh, tmp_path):
    page = fresh.page
    page.set_viewport_size({"width": 360, "height": 740})
    fresh.draw("sunflower", seed=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate("""() => [...document.querySelectorAll("button:not([hidden])")].filter((button) =>
        button.checkVisibility() && button.getBoundingClientRect().height < 24).map((button) => button.outerHTML)""")
    assert small == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=tmp_path / f"phone-{scheme}.png")
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(int(part) for part in paper[4:-1].split(",")) > 384) == (scheme == "light")


@pytest.mark.slow
def test_saving_memory_draws_the_same(fresh):
    page = fresh.page
    page.click("#device-button")
    page.check("#frugal")
    page.wait_for_selector("#device-label:has-text('saving memory')")
    page.click("#device button[value=close]")
    fresh.draw("red apple", steps=4)
    assert golden_distance(fresh.pixels()) <= 2
    assert page.evaluate("document.querySelector('#film canvas').width") == 8  # a sketch: no decoder was open
    page.evaluate("localStorage.clear()")


def test_it_can_be_installed(ready):
    session = ready.page.context.new_cdp_session(ready.page)
    ready.page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    manifest = session.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert json.loads(manifest["data"])["display"] == "standalone"
    errors = [error["errorId"] for error in session.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    assert errors in ([], ["in-incognito"])


def test_a_tab_put_to_sleep_and_thrown_away_gets_its_text_back(fresh):
    page = fresh.page
    pending = json.dumps({"prompt": "owl", "seed": 12, "steps": 2})
    page.evaluate(f"localStorage.setItem('pending', {json.dumps(pending)})")
    page.reload()
    page.wait_for_selector(READY)
    assert "put this page to sleep while it was drawing" in page.inner_text("#notices")
    assert [page.input_value(name) for name in ("#prompt", "#seed", "#steps")] == ["owl", "12", "2"]
    page.press("#prompt", "Enter")
    page.wait_for_selector("#gallery li")
    assert page.inner_text("#caption") == "owl · seed 12 · 2 steps"
    assert page.evaluate("localStorage.getItem('pending')") is None


def test_a_tab_frozen_in_the_middle_goes_on(ready):
    session = ready.page.context.new_cdp_session(ready.page)
    ready.page.fill("#steps", "8")
    ready.page.press("#prompt", "Enter")
    ready.page.wait_for_selector("#film li")
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    session.send("Page.setWebLifecycleState", {"state": "active"})
    ready.page.wait_for_selector("#gallery li")
    assert ready.page.locator("#film li").count() == 8


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


def test_without_a_server_after_a_restart_it_draws_the_same(visited):
    """Page, model and gallery come from the device."""
    opened = visited.warm()
    opened.page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    opened.draw("rocket", seed=7)
    before = opened.pixels()
    visited.restart()
    with visited.without_server():
        opened = visited.warm()
        assert opened.page.locator("#gallery li").count() == 1
        assert opened.draw("rocket", seed=7) == "Done."
        assert opened.pixels() == before
        opened.empty()
        assert opened.errors == []
