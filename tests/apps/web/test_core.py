"""The core by itself, in Node: tokenizer, noise, samplers and ids against the library's vectors; downloads that go wrong."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from apps import vectors
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE

HERE = Path(__file__).parent


def node(script: str, *arguments: object) -> dict:
    if shutil.which("node") is None:
        pytest.skip("no node here; on Debian: apt-get install nodejs")
    done = subprocess.run(
        ["node", str(HERE / script), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(site):
    return node("core.mjs", site, vectors.FILE, DEFAULT_BUNDLE)


def test_the_tokenizer_gives_python_s_ids(found):
    assert found["texts"] == []


def test_the_noise_is_numpy_s(found):
    assert found["noise"] == [0, 0, 0, 0]


def test_every_sampler_is_the_library_s(found):
    from kdc_edge.samplers import SAMPLERS

    assert {one["sampler"] for one in found["samplers"]} == set(SAMPLERS)
    for one in found["samplers"]:
        assert one["timesteps"] == 0
        assert one["x"] < 1e-6, one["sampler"]


def test_the_hash_of_pages_without_https_is_sha256(found):
    assert found["hashes"] == []


def test_the_bundle_has_its_id(found):
    assert found["id"] == Bundle.open(DEFAULT_BUNDLE).id


@pytest.fixture(scope="module")
def downloads(site):
    return node("downloads.mjs", site)


@pytest.mark.parametrize(
    "case",
    [
        "whole",
        "kept",
        "resumed",
        "resumed after closing",
        "no ranges",
        "damaged once",
        "too long once",
        "too short once",
    ],
)
def test_a_download_ends_whole(downloads, case):
    assert downloads[case]["ok"], downloads[case]


def test_a_download_that_goes_on_asks_for_the_rest_alone(downloads):
    assert downloads["resumed"]["ranges"][0] is None
    first, *others = downloads["resumed"]["ranges"][1:]
    assert first.startswith("bytes=") and first != "bytes=0-"
    assert others == []
    assert downloads["kept"]["ranges"] == []


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("damaged twice", "damaged", "is not the file that the model's description vouches for, twice"),
        ("gone", "network", "is not on the server (404)"),
        ("dead", "network", "it goes on from there"),
        ("paused", "cancelled", "Paused at"),
    ],
)
def test_one_that_cannot_says_what_to_do(downloads, case, kind, words):
    assert downloads[case]["kind"] == kind
    assert words in downloads[case]["message"]
    assert downloads[case]["files"] == 0
