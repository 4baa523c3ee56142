"""The text to port from says what the library does. Oracle: `kdc_edge`, whose own oracles are transformers and diffusers."""

import ast
import dataclasses
import json
import math
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps import reference
from kdc_edge import noise, samplers
from kdc_edge.denoise import from_network
from kdc_edge.manifest import Betas
from kdc_edge.pipeline import DEFAULT_BUNDLE
from kdc_edge.schedule import Schedule
from kdc_edge.tokenizer import Tokenizer

COUNT = 12  # numbers in a sample
SPECIAL = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "it's",
    "'ll",
    "ΟΔΟΣ",
    "İ",
    "\u0345",
    " \u2003",
    "\x1c",
    "!!",
    "42",
]

# characters that every Unicode since 3.2 has: tables of different age agree on them
known = st.characters(codec="utf-8").filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")
texts = st.text(known, max_size=60) | st.lists(st.sampled_from(SPECIAL) | st.text(known, max_size=4)).map("".join)


def test_it_is_short_and_plain():
    source = Path(reference.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 300
    roots = {node.module.split(".")[0] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    roots |= {
        a.name.split(".")[0] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names
    }
    assert roots <= set(sys.stdlib_module_names)


@pytest.fixture(scope="module")
def tokenizers():
    folder = DEFAULT_BUNDLE / "tokenizer"
    return reference.Tokenizer(folder, 77), Tokenizer.open(folder, 77)


@settings(max_examples=500, deadline=None)
@given(text=texts)
def test_the_same_ids(tokenizers, text):
    ours, theirs = tokenizers
    ids, dropped = ours(text)
    encoded = theirs([text])
    assert ids == encoded.ids[0].tolist()
    assert dropped == encoded.dropped[0]


@pytest.mark.parametrize("text", ["", "very long " * 60, "<|endoftext|>" * 2000, "aaaaaaaaab" * 30, "x" * 2000])
def test_the_same_ids_at_the_edges(tokenizers, text):
    ours, theirs = tokenizers
    assert ours(text)[0] == theirs([text]).ids[0].tolist()


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_the_same_noise_bit_for_bit(seed):
    ours, theirs = reference.Noise(seed), noise.gaussian(seed)
    for count in (1, 5, 1300):  # odd ones: half a pair is kept from draw to draw
        assert np.array_equal(np.array(ours(count), np.float32), theirs((count,)))


def network(x, t):
    """Smooth, bounded, different in every element and at every timestep."""
    return np.tanh(0.7 * np.asarray(x) + 0.3 * np.linspace(-1, 1, COUNT) + math.sin(t / 150))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize(
    ("predicts", "schedule", "to_one"),
    [("epsilon", "scaled_linear", True), ("v_prediction", "linear", False), ("sample", "linear", True)],
)
def test_the_same_samples(sampler, spacing, steps, predicts, schedule, to_one):
    betas = Betas(schedule, 0.00085, 0.012, 1000, spacing, 1, to_one)
    theirs, ours = Schedule.of(betas), reference.Schedule(reference.Betas(**dataclasses.asdict(betas)))
    theirs_plan, ours_plan = samplers.SAMPLERS[sampler].plan(theirs, steps), reference.plan(sampler, ours, steps)
    for field in dataclasses.fields(samplers.Plan):
        np.testing.assert_allclose(getattr(ours_plan, field.name), getattr(theirs_plan, field.name), rtol=1e-9)

    unit = reference.Noise(3)(COUNT)
    denoise = reference.denoiser(lambda x, t: network(x, t).tolist(), predicts, ours)
    start = [value * ours_plan.start for value in unit]
    found = list(reference.SAMPLERS[sampler](denoise, start, ours_plan, reference.Noise(5)))
    loop = samplers.SAMPLERS[sampler].loop
    x = np.array(unit) * theirs_plan.start
    wanted = list(loop(from_network(network, predicts, theirs), x, theirs_plan, noise.gaussian(5)))
    assert len(found) == len(wanted) == len(theirs_plan)
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(np.array(one) - other.x).max() <= 1e-6 * np.abs(other.x).max()


def test_its_samplers_are_the_library_s():
    assert list(reference.SAMPLERS) == list(samplers.SAMPLERS)


def test_it_reads_the_manifest_s_betas():
    told = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text(encoding="utf-8"))["pipeline"]
    plan = reference.plan(told["sampler"], reference.Schedule(reference.Betas(**told["betas"])), told["steps"])
    assert len(plan.sigmas) == told["steps"]
