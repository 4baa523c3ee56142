import logging
import math

import numpy as np
import pytest

from kdc_edge import Pipeline, pipeline
from kdc_edge.errors import BundleError, GateError, UsageError
from kdc_edge.images import pixel_hash
from kdc_edge.noise import gaussian
from kdc_edge.ports import COMPONENTS
from kdc_edge.samplers import SAMPLERS
from tests.kdc_edge.builders import SIZES, SPEC, sd_spec, write_bundle


@pytest.fixture(scope="module", params=["ort", "fake"])
def pipe(request, hand_bundle):
    with Pipeline.open(hand_bundle, runtime=request.param) as pipe:
        yield pipe


def hashes(pictures):
    return [pixel_hash(picture) for picture in pictures]


def test_one_prompt_one_picture(pipe):
    picture = pipe.generate("red apple", seed=3)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert pixel_hash(picture) == pixel_hash(pipe.generate("red apple", seed=3))
    assert len(set(hashes([picture, pipe.generate("red apple", seed=4), pipe.generate("heart", seed=3)]))) == 3


def test_a_picture_does_not_depend_on_its_neighbours(pipe):
    prompts = ["red apple", "heart", ""]
    alone = [pipe.generate(prompt, seed=3 + i) for i, prompt in enumerate(prompts)]
    assert hashes(pipe.generate(prompts, seed=3)) == hashes(alone)
    assert pipe.generate([]) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_streams_to_the_same_end(pipe, sampler):
    frames = list(pipe.stream("red", seed=1, steps=5, sampler=sampler))
    assert [frame.index for frame in frames] == list(range(frames[0].total))
    assert frames[-1].sigma == 0 and frames[-1].latents.shape == (1, 4, 8, 8)
    assert frames[-1].latents.dtype == np.float32
    assert pixel_hash(frames[-1].image()) == pixel_hash(pipe.generate("red", seed=1, steps=5, sampler=sampler))
    assert frames[0].preview().size == (64, 64)


def test_leaving_the_loop_stops_the_work(hand_bundle):
    with Pipeline.open(hand_bundle, runtime="fake") as pipe:
        for frame in pipe.stream("red", steps=10):
            if frame.index == 2:
                break
        assert {name: len(calls) for name, calls in pipe.timings.calls.items()} == {"text_encoder": 1, "unet": 3}


def test_timings_count_every_call(hand_bundle):
    with Pipeline.open(hand_bundle, runtime="fake") as pipe:
        pipe.generate(["red", "apple"], steps=3)
    counts = {name: len(calls) for name, calls in pipe.timings.calls.items()}
    assert counts == {"text_encoder": 2, "unet": 6, "vae_decoder": 2}
    assert pipe.timings.load > 0 and set(pipe.timings.totals()) == set(counts)


class Recorder:
    """Zeros, remembering batch sizes."""

    def __init__(self, name):
        self.ports, self.batches = COMPONENTS[name].bind(SIZES), []

    def __call__(self, **inputs):
        batch = next(len(array) for array in inputs.values() if array.ndim)
        self.batches.append(batch)
        shapes = {port.name: [batch, *port.shape[1:]] for port in self.ports.outputs}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def close(self):
        pass


@pytest.mark.parametrize(("guidance", "batch"), [(1, 1), (1.0, 1), (0, 2), (0.5, 2), (7.5, 2)])
def test_guidance_one_costs_half(pipe, guidance, batch):
    recorders = {name: Recorder(name) for name in pipeline.COMPONENTS}
    Pipeline(SPEC, pipe.tokenizer, recorders).generate("red", guidance=guidance, steps=2)
    assert recorders["text_encoder"].batches == [batch] and recorders["unet"].batches == [batch, batch]


def test_guidance_zero_is_the_negative_prompt(hand_bundle):
    with Pipeline.open(hand_bundle) as pipe:
        *_, unguided = pipe.stream("heart", seed=5, guidance=1)
        *_, away = pipe.stream("red", seed=5, guidance=0, negative="heart")
    assert np.allclose(away.latents, unguided.latents, atol=1e-5)


def test_a_network_whose_answer_is_known(pipe):
    """v = 0 gives x0 = alpha² x: ddim then scales unit-variance latents by cos of the angle between steps."""
    recorders = {name: Recorder(name) for name in pipeline.COMPONENTS}
    known = Pipeline(SPEC, pipe.tokenizer, recorders)
    plan = SAMPLERS["ddim"].plan(known.schedule, 4)
    angles = np.arctan([*plan.sigmas, 0.0])
    *_, last = known.stream("red", seed=2, guidance=1)
    expected = gaussian(2)((1, 4, 8, 8)) * np.prod(np.cos(angles[:-1] - angles[1:]))
    assert np.allclose(last.latents, expected, atol=1e-5)


def test_values_of_the_bundle_are_the_defaults(tmp_path):
    folder = write_bundle(tmp_path / "sd", sd_spec())
    with Pipeline.open(folder, runtime="fake") as pipe:
        frames = list(pipe.stream("red"))
        assert len(frames) == 5  # pndm evaluates its second step twice
        explicit = pipe.generate("red", steps=4, guidance=3.0, sampler="pndm", seed=0)
        assert pixel_hash(frames[-1].image()) == pixel_hash(explicit)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0, must be between 1 and 1000"),
        ({"steps": 1001}, "steps is 1001"),
        ({"sampler": "eular"}, "no sampler 'eular'; .*did you mean 'euler'"),
        ({"guidance": -1}, "guidance is -1, must be 0 or more"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"negative": "\udcff"}, "not UTF-8"),
    ],
)
def test_values_that_cannot_be_meant(pipe, settings, message):
    with pytest.raises(UsageError, match=message):
        pipe.generate("red", **settings)
    with pytest.raises(UsageError, match=message):
        pipe.stream("red", **settings)


def test_the_last_seed_has_no_successor(pipe):
    pipe.generate(["red"], seed=2**32 - 1, steps=1)
    with pytest.raises(UsageError, match="must be between 0 and 4294967294 for 2 pictures"):
        pipe.generate(["red", "blue"], seed=2**32 - 1, steps=1)


@pytest.mark.parametrize("prompt", ["", "x" * 10_000, "👍🏽 красное яблоко 🇳🇴", "\x00", "a\u0301" * 200])
def test_any_text_is_a_prompt(pipe, prompt):
    assert pipe.generate(prompt, steps=1).size == (64, 64)


def test_a_prompt_that_is_too_long_is_noticed(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        pipe.generate("2 " * 80, steps=1)
    assert "is 5 tokens too long; its end was dropped" in caplog.text


def test_nan_is_no_picture(pipe):
    class Broken(Recorder):
        def __call__(self, **inputs):
            return {name: array * np.nan for name, array in super().__call__(**inputs).items()}

    components = {name: Recorder(name) for name in pipeline.COMPONENTS} | {"vae_decoder": Broken("vae_decoder")}
    with pytest.raises(GateError, match="NaN or infinity"):
        Pipeline(SPEC, pipe.tokenizer, components).generate("red")


def test_without_a_default_bundle(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "DEFAULT_BUNDLE", tmp_path / "none")
    with pytest.raises(BundleError, match="no default bundle"):
        Pipeline.open()
