"""What can be wrong with a browser, a device, a server or a text: the page says what happened and what to do, and goes on."""

import json

import pytest

from tests.apps.web.conftest import PROBLEM, READY, serving

BLOCKED = {"service_workers": "block"}  # so that a test can answer for the server
MANIFEST, DECODER = "**/bundle/manifest.json", "**/vae_decoder/model.onnx"


def changed(**fields):
    """Answers for the server with a manifest of other fields."""

    def answer(route):
        told = route.fetch().json()
        route.fulfill(json={**told, **fields})

    return answer


UNUSABLE = [
    ({"format": 2}, "newer than the 1 that this page reads. Reload the page to update it."),
    ({"format": 0}, "must be 1. Fetch the model again."),
    ({"runtime": "coreml"}, "made for Apple's Core ML and cannot run in a browser"),
    ({"files": {}}, "it does not list golden/golden.json. Fetch the model again."),
    ({"files": {"../secret": {"sha256": "0" * 64, "bytes": 1}}}, "not a plain path inside the bundle"),
]


def test_a_bundle_that_it_cannot_use_is_refused(url, open_page):
    """One after another, each as what the server has when somebody presses "Try again"."""
    opened = open_page(**BLOCKED)
    for i, (fields, words) in enumerate(UNUSABLE):
        opened.page.unroute(MANIFEST)
        opened.page.route(MANIFEST, changed(**fields))
        opened.page.click("#pause") if i else opened.page.goto(url)
        opened.page.wait_for_selector(f"{PROBLEM}:has-text({json.dumps(words)})")
        assert opened.page.is_disabled("#draw")
        assert opened.page.inner_text("#pause") == "Try again"


def test_a_damaged_file_is_fetched_again_and_then_refused(url, open_page, site):
    good, fetched = (site / "bundle/vae_decoder/model.onnx").read_bytes(), []
    opened = open_page(**BLOCKED)

    def damaged(route):
        fetched.append(route.request.headers.get("range"))
        route.fulfill(body=good[:-1] + bytes([good[-1] ^ 1]))

    opened.page.route(DECODER, damaged)
    opened.page.goto(url)
    opened.page.wait_for_selector(PROBLEM)
    assert "vae_decoder/model.onnx is not the file that the model's description vouches for, twice" in opened.status()
    assert fetched == [None, None]
    opened.page.unroute(DECODER)
    opened.page.click("#pause")
    opened.page.wait_for_selector(READY)
    assert opened.draw("rocket") == "Done."


@pytest.mark.slow
def test_no_isolation_means_one_thread_and_it_says_so(site, open_page):
    with serving(site, isolated=False) as url:
        opened = open_page("delete Navigator.prototype.serviceWorker").ready(url)
        notices = opened.page.inner_text("#notices")
        assert "no service workers" in notices
        assert "not isolated, so one thread draws" in notices
        assert opened.page.inner_text("#device-label") == "Processor, 1 thread"
        assert opened.draw("rocket") == "Done."


@pytest.mark.slow
def test_any_host_will_do_since_the_service_worker_isolates_the_page(site, open_page):
    with serving(site, isolated=False) as url:
        opened = open_page().ready(url)
        assert opened.page.evaluate("crossOriginIsolated")
        assert opened.page.inner_text("#notices") == ""


@pytest.mark.slow
def test_over_the_local_network_it_draws_with_what_there_is(site, browser):
    """No https: no threads, no service worker, not even SHA-256."""
    with serving(site) as url:
        page = browser.new_page()
        page.goto(url.replace("localhost", "lan.test"))
        page.wait_for_selector(READY)
        assert not page.evaluate("isSecureContext")
        assert "This address is not https or localhost" in page.inner_text("#notices")
        page.click("#draw")
        page.wait_for_selector("#gallery li")
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "The device has no more room, so the model is fetched again at the next visit"),
        (
            "StorageManager.prototype.estimate = async () => ({ quota: 5e6, usage: 1e6 })",
            "The model takes 12.9 MB, and this browser gives the page 4.0 MB, so the model is fetched again",
        ),
    ],
)
def test_too_little_room_means_nothing_is_kept_and_it_says_so(url, open_page, script, words):
    opened = open_page(script, **BLOCKED)
    session = opened.page.context.new_cdp_session(opened.page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": url.rstrip("/"), "quotaSize": 5_000_000})
    opened.ready(url)
    notices = opened.page.inner_text("#notices")
    assert words in notices
    assert "Save those you like." in notices
    assert opened.draw("rocket") == "Done."


@pytest.mark.slow
def test_webgpu_asked_for_and_not_there(url, open_page):
    script = "localStorage.setItem('preferences', JSON.stringify({ wanted: 'webgpu' })); delete Navigator.prototype.gpu"
    opened = open_page(script).ready(url)
    assert "offers no WebGPU, so the processor draws" in opened.page.inner_text("#notices")
    opened.page.click("#device-button")
    assert opened.page.is_disabled("input[value=webgpu]")
