"""The core as a library: in Node it conforms and says what is wrong; in a page it draws the same picture."""

from pathlib import Path

import numpy as np
import pytest

from kdc_edge import Pipeline, conformance, golden
from kdc_edge.bundle import Bundle
from kdc_edge.files import write_json
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.apps.web.test_core import node

CORE = Path(__file__).parents[3] / "apps" / "web" / "static" / "core"
LEVELS = 2  # of 255: WebAssembly adds up in another order
PAGE = '<link rel="icon" href="data:,">'
IN_A_PAGE = """async () => {
    const from = (path) => import(new URL(path, location));
    const ort = await from("vendor/ort/ort.wasm.min.mjs"), { Tokenizer } = await from("vendor/tokenizers.mjs");
    const { fetched, open, rgb } = await from("core/index.mjs");
    ort.env.wasm.wasmPaths = new URL("vendor/ort/", location).href;
    ort.env.wasm.numThreads = 1;
    const pipeline = await open(fetched("bundle"), { ort, Tokenizer });
    for await (const frame of pipeline.stream({ prompt: "red apple", seed: 3 })) {
        if (frame.done) return [...rgb(await frame.image())];
    }
}"""


@pytest.fixture(scope="module")
def found(modules, tmp_path_factory):
    return node("library.mjs", CORE, modules, DEFAULT_BUNDLE, tmp_path_factory.mktemp("empty"))


def apart(pixels, prompt, **settings):
    with Pipeline.open(DEFAULT_BUNDLE) as pipe:
        wanted = np.asarray(pipe.generate(prompt, **settings).convert("RGB")).astype(int)
    return np.abs(np.reshape(pixels, wanted.shape) - wanted).max()


def test_it_conforms(found, tmp_path):
    bundle = Bundle.open(DEFAULT_BUNDLE)
    write_json(tmp_path / "results.json", found["results"])
    app, arrays = conformance.read(tmp_path / "results.json", bundle.id)
    assert (app, found["id"]) == ("the tests, Node", bundle.id)
    conformance.gate(conformance.judge(golden.read(bundle), arrays))


def test_it_reads_the_manifest_first_and_each_file_once(found):
    assert found["asked"][0] == "manifest.json"
    assert len(found["asked"]) == len(set(found["asked"])) == 8


def test_a_guided_picture_is_python_s(found):
    """Another sampler, step count, guidance and negative prompt than the bundle's own."""
    assert apart(found["guided"], "rocket", seed=7, steps=3, guidance=2, negative="red", sampler="euler") <= LEVELS


def test_one_network_at_a_time_draws_the_same(found):
    assert found["frugal"] == found["plain"]


def test_leaving_the_loop_cancels(found):
    assert found["left"] == {"seen": [0, 1], "preview": 4 * 64 * 64}


def test_a_long_prompt_is_cut_and_the_rest_counted(found):
    assert found["long"] == 165


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        (
            "damaged",
            "damaged",
            "unet/model.onnx is damaged: its SHA-256 is not the manifest's. Fetch the bundle again.",
        ),
        ("short", "damaged", "unet/model.onnx has 1000 bytes and should have"),
        ("missing", "damaged", "manifest.json cannot be read (ENOENT"),
        ("outside", "damaged", "'../golden.json', which is not a plain path inside the bundle"),
        ("memory", "memory", "MiB of memory, 64 MiB are free. Close something else"),
        ("newer", "newer", "This model is of format 2, newer than the 1"),
        ("other", "runtime", "This model is made for Apple's Core ML"),
        ("unserved", "network", "The server does not answer."),
        ("seed", "usage", "The seed is -1; it must be a whole number from 0 to 4294967295."),
    ],
)
def test_what_is_wrong_is_said(found, case, kind, words):
    assert found[case][0] == kind
    assert words in found[case][1]


@pytest.mark.slow
def test_a_page_draws_by_it(open_page, url):
    page = open_page().page
    page.route("**/mine.html", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    page.goto(f"{url}mine.html")
    assert apart(page.evaluate(IN_A_PAGE), "red apple", seed=3) <= LEVELS
