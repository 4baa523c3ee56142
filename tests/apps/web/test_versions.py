"""A new version of the model on the server: swapped in after its golden picture, refused without one, the old one kept."""

import hashlib
import json

import pytest

from tests.apps.web.conftest import READY, serving


def publish(site, change, golden=lambda told: told):
    """A manifest that differs, with a golden.json that may."""
    manifest, settings = site / "bundle/manifest.json", site / "bundle/golden/golden.json"
    told = json.loads(manifest.read_text())
    text = json.dumps(golden(json.loads(settings.read_text()))).encode()
    told["files"]["golden/golden.json"] = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    for path, content in ((settings, text), (manifest, json.dumps(change(told)).encode())):
        path.unlink()  # a link to the shared one
        path.write_bytes(content)


def stored(page):
    """What is on the device: the active id, all bundles', and how many files."""
    return page.evaluate("""async () => {
        const { open } = await import("./core/store.mjs"), store = await open();
        const found = { active: await store.get("state", "active"), bundles: await store.keys("bundles"),
                        files: (await store.keys("files")).length, refused: await store.get("state", "refused") };
        store.database.close();
        return found;
    }""")


def version(number):
    return lambda told: {**told, "version": number, "pipeline": {**told["pipeline"], "steps": int(number)}}


@pytest.mark.slow
def test_a_good_one_takes_over_and_a_bad_one_does_not(own_site, open_page):
    with serving(own_site) as url:
        opened = open_page(service_workers="block").ready(url)
        page, first = opened.page, stored(opened.page)
        assert first["bundles"] == [first["active"]]

        fetched = []
        page.on("request", lambda request: fetched.append(request.url.rpartition("bundle/")[2]))
        publish(own_site, version("3"))
        page.reload()
        page.wait_for_selector("#notices:has-text('A new version of the model is in use.')")
        second = stored(page)
        assert second["active"] != first["active"]
        assert (second["bundles"], second["files"]) == ([second["active"]], first["files"])
        assert not [name for name in fetched if name.endswith(".onnx")]  # what did not change is not fetched again
        assert page.input_value("#steps") == "3"

        publish(own_site, version("5"), lambda told: {**told, "seed": 9})
        page.reload()
        page.wait_for_selector("#notices:has-text('was fetched and not taken')")
        third = stored(page)
        assert (third["active"], third["bundles"], third["files"]) == (
            second["active"],
            second["bundles"],
            second["files"],
        )
        assert third["refused"]
        assert opened.draw("rocket", steps=3) == "Done."

        fetched.clear()
        page.reload()
        page.wait_for_selector(READY)
        page.wait_for_timeout(300)
        assert [name for name in fetched if name.startswith("golden")] == []  # nor is it fetched a second time
