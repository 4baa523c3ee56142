"""The C++ headers compile without a warning, agree with the shared vectors and draw; what they measure goes to the judge.

One program holds all that is run, docs/embedding.md's sample too. onnxruntime is Debian 13's libonnxruntime-dev, or its
release archive, unpacked where KDC_ONNXRUNTIME says; without it the part that needs no network is compiled and run.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdc_edge import Pipeline, conformance, golden
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE
from kdc_edge.samplers import SAMPLERS
from tests.apps.test_embedding import snippet

ROOT = Path(__file__).parents[2]
CPP, CHECKS = ROOT / "apps" / "cpp", Path(__file__).parent / "cpp" / "checks.cpp"
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
DEBIAN = Path("/usr/include/onnxruntime")
CHATTER = "Schema error: Trying to register"  # of Debian 13's onnxruntime, a thousand lines at its start
LEVELS = 2  # of 255, where another onnxruntime or thread count adds up in another order
MAX_LINES, MAX_WIDTH = 400, 126


def has(header, *flags):
    asked = f"#if !__has_include(<{header}>)\n#error\n#endif\n"
    command = ["g++", "-E", "-x", "c++", *flags, "-"]
    return subprocess.run(command, input=asked, capture_output=True, text=True, check=False).returncode == 0


def onnxruntime():
    """Flags for the compiler; none where it is not."""
    if "KDC_ONNXRUNTIME" in os.environ:
        folder = Path(os.environ["KDC_ONNXRUNTIME"])
        return ["-isystem", folder / "include", "-L", folder / "lib", f"-Wl,-rpath,{folder / 'lib'}", "-lonnxruntime"]
    return ["-isystem", DEBIAN, "-lonnxruntime"] if DEBIAN.is_dir() else []


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: make system-deps")
    if missing := [header for header in ("nlohmann/json.hpp", "utf8proc.h") if not has(header)]:
        pytest.skip(f"no {missing[0]} here: make system-deps")
    out = tmp_path_factory.mktemp("cpp")
    (out / "sample.cpp").write_text(snippet("cpp"), encoding="utf-8")
    command = ["g++", *FLAGS, "-I", CPP, "-I", out, CHECKS, "-o", out / "checks", "-lutf8proc", *onnxruntime()]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return out / "checks"


@pytest.fixture(scope="module")
def drawing(program):
    if not onnxruntime():
        pytest.skip(f"no {DEBIAN}: Debian 13's libonnxruntime-dev, or KDC_ONNXRUNTIME names an unpacked release")
    return program


def run(program, *words, code=0):
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if line.strip() and not line.startswith(CHATTER))
    return done


@pytest.fixture
def copy(tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")


@pytest.fixture(scope="module")
def vectors(program):
    found = run(program, "vectors", ROOT / "apps" / "vectors.json", DEFAULT_BUNDLE / "tokenizer")
    return json.loads(found.stdout)


def test_the_tokenizer_gives_python_s_ids(vectors):
    assert vectors["texts"] == []


def test_the_noise_is_numpy_s(vectors):
    assert vectors["noise"] == []


def test_every_sampler_is_the_library_s(vectors):
    assert {one["sampler"] for one in vectors["samplers"]} == set(SAMPLERS)
    for one in vectors["samplers"]:
        assert one["same timesteps"], one
        assert one["off"] < 1e-6, one


def test_the_hash_is_sha256(vectors):
    for length, seen in vectors["hashes"].items():
        assert seen == hashlib.sha256(b"a" * int(length)).hexdigest()


def test_the_bundle_has_its_id(program):
    assert json.loads(run(program, "open", DEFAULT_BUNDLE).stdout)["id"] == Bundle.open(DEFAULT_BUNDLE).id


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 1', '"format": 2', "This bundle is newer than the app. Update the app."),
        ('"format": 1', '"format": 0', "This bundle is too old for the app."),
        (
            '"runtime": "onnx"',
            '"runtime": "coreml"',
            "made for coreml; this app runs bundles for onnx. Fetch one for onnx.",
        ),
        ('"tokens": 77,', "", "manifest.json has no tokens. Fetch the bundle again."),
        ('"steps": 4', '"steps": "4"', 'steps is "4", which it cannot be. Fetch'),
        ('"steps": 4', '"steps": 4.5', "steps is 4.5, which it cannot be. Fetch"),
        ('"tokens": 77', '"tokens": 2', "a number is too small"),
        ("golden/golden.json", "../golden.json", "'../golden.json', which is outside the bundle"),
        ("numpy-randomstate", "philox", "nobody knows its noise"),
        ('"files": [', '"files": ["elsewhere.onnx", ', "The manifest vouches for no elsewhere.onnx"),
        ("{", "[", "manifest.json is damaged: not valid JSON at byte"),
    ],
)
def test_manifests_that_cannot_be_meant(program, copy, old, new, words):
    path = copy / "manifest.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert words in run(program, "open", copy, code=5).stderr


def test_a_damaged_a_short_and_a_missing_file(program, copy):
    path = copy / "unet" / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    assert "unet/model.onnx is damaged: its SHA-256 is not the manifest's" in run(program, "open", copy, code=5).stderr
    path.write_bytes(whole[:1000])
    assert "unet/model.onnx has 1000 bytes and should have" in run(program, "open", copy, code=5).stderr
    path.unlink()
    assert "unet/model.onnx is missing. Fetch the bundle again." in run(program, "open", copy, code=5).stderr
    (copy / "manifest.json").unlink()
    assert "This folder is no bundle: it has no manifest.json." in run(program, "open", copy, code=5).stderr


def test_too_little_memory(program):
    need = Bundle.open(DEFAULT_BUNDLE).manifest.requires.memory_mib
    words = (
        f"This bundle needs {need} MiB of memory, 64 MiB are free. Close other programs, or fetch a smaller bundle.\n"
    )
    assert run(program, "open", DEFAULT_BUNDLE, "64", code=4).stderr == words


def judged(program, bundle, results):
    run(program, "conformance", bundle.path, results)
    app, arrays = conformance.read(results, bundle.id)
    assert app.startswith("kdc-edge for C++, onnxruntime 1.")
    return conformance.gate(conformance.judge(golden.read(bundle), arrays))


def test_it_conforms(drawing, tmp_path):
    judged(drawing, Bundle.open(DEFAULT_BUNDLE), tmp_path / "results.json")


@pytest.mark.slow
def test_a_guided_bundle_in_16_bits_conforms(drawing, tmp_path, tiny_sd_bundle):
    judged(drawing, Bundle.open(tiny_sd_bundle), tmp_path / "results.json")


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_sample_draws(drawing):
    found = run(drawing, "sample", DEFAULT_BUNDLE)
    assert found.stdout.splitlines() == [*(f"step {i} of 4" for i in range(1, 5)), str(3 * 64 * 64)]


def test_a_guided_picture_is_python_s(drawing, tmp_path):
    """Another sampler, step count, guidance and negative prompt than the bundle's own."""
    told = ["--seed", "7", "--steps", "3", "--guidance", "2", "--negative", "red", "--sampler", "euler"]
    done = run(drawing, "draw", DEFAULT_BUNDLE, "rocket", *told, "-o", tmp_path / "rocket.ppm")
    assert done.stderr == "".join(f"step {i} of 3\n" for i in range(1, 4))
    with Pipeline.open(DEFAULT_BUNDLE) as pipe:
        wanted = pipe.generate("rocket", seed=7, steps=3, guidance=2, negative="red", sampler="euler")
    assert np.abs(pixels(tmp_path / "rocket.ppm") - np.asarray(wanted.convert("RGB"))).max() <= LEVELS


def test_cancelled_previewed_and_with_one_network_at_a_time(drawing):
    assert json.loads(run(drawing, "frames", DEFAULT_BUNDLE).stdout) == {
        "cancelled": ["Stopped; no picture was made.", 130],
        "seen": [0, 1],
        "previews": 4,
        "the first is not the last": True,
        "the last is the picture": True,
        "frugal is the same": True,
    }


def test_a_long_prompt_is_cut_and_the_person_told(drawing, tmp_path):
    done = run(drawing, "draw", DEFAULT_BUNDLE, "very long " * 60, "-o", tmp_path / "long.ppm")
    assert done.stderr.endswith("The prompt is 165 tokens too long; its end was left out.\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([b"\xff"], "The prompt is not UTF-8."),
        (["x", "--steps", "0"], "--steps is '0', which it cannot be."),
        (["x", "--steps", "1001"], "1001 steps are not possible. Choose 1 to 1000."),
        (["x", "--seed", "-1"], "--seed is '-1', which it cannot be."),
        (["x", "--seed", "3x"], "--seed is '3x', which it cannot be."),
        (["x", "--sampler", "heun"], "There is no sampler 'heun'."),
        (["x", "--sed", "3"], "There is no option --sed."),
        (["x", "--seed"], "--seed needs a value."),
        ([], "Say which bundle and what to draw"),
        (["x", "-o", "/no/such/folder/x.ppm"], "/no/such/folder/x.ppm cannot be written."),
    ],
)
def test_what_cannot_be_meant(drawing, words, told):
    assert told in run(drawing, "draw", DEFAULT_BUNDLE, *words, code=2).stderr


@pytest.mark.parametrize("path", sorted([*CPP.rglob("*.[ch]pp"), CHECKS]), ids=lambda path: path.name)
def test_a_file_reads_in_one_sitting(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert [i + 1 for i, line in enumerate(lines) if len(line) > MAX_WIDTH] == []
