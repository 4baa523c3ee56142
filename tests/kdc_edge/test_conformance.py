"""The judge: passes what the bundle itself measures, names the stage that is off, refuses what is no results file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kdc_edge import cli, conformance, golden
from kdc_edge.bundle import Bundle
from kdc_edge.conformance import STAGES, judge
from kdc_edge.errors import BundleError, GateError
from kdc_edge.pipeline import DEFAULT_BUNDLE


def call(*argv):
    with pytest.raises(SystemExit) as caught:
        cli.main(["conformance", *map(str, argv)])
    return caught.value.code


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(DEFAULT_BUNDLE)


@pytest.fixture(scope="module")
def vectors(bundle):
    return golden.read(bundle)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """What the shipped bundle measures of itself."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    assert call("-o", path) == 0
    return path


@pytest.fixture(scope="module")
def arrays(file, bundle):
    return conformance.read(file, bundle.id)[1]


def changed(file, tmp_path, **changes):
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return path


def test_what_the_bundle_measures_passes(file, capsys):
    assert call("--results", file, "--json") == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["stage"] for row in out["stages"]] == list(STAGES)
    assert {row["state"] for row in out["stages"]} == {"passed"}


def test_a_guided_bundle_with_two_rows_passes(tiny_sd_bundle, tmp_path):
    assert Bundle.open(tiny_sd_bundle).manifest.pipeline.guidance != 1
    assert call(tiny_sd_bundle, "-o", tmp_path / "results.json") == 0
    assert call(tiny_sd_bundle, "--results", tmp_path / "results.json") == 0


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_off_is_named(stage, vectors, arrays):
    wrong = arrays[stage].copy()
    tolerance = judge(vectors, arrays, [stage])[0].tolerance
    wrong.flat[7 % wrong.size] += np.array(2 * tolerance + 1).astype(wrong.dtype)
    verdicts = judge(vectors, {**arrays, stage: wrong})
    assert [verdict.stage for verdict in verdicts if verdict.state == "failed"] == [stage]
    with pytest.raises(GateError, match=rf"{stage} .*: off by"):
        conformance.gate(verdicts)


@pytest.mark.parametrize("stage", ["last_hidden_state", "latents"])
def test_just_within_and_just_beyond(stage, vectors, arrays):
    for factor, state in ((0.99, "passed"), (1.01, "failed")):
        moved = vectors.arrays[stage].copy()
        moved.flat[0] += factor * vectors.settings.tolerances[stage]
        assert judge(vectors, {stage: moved}, [stage])[0].state == state


def test_not_a_number_shapes_and_what_is_missing_fail(vectors, arrays):
    broken = arrays["latents"].copy()
    broken.flat[3] = np.nan
    measured = {"latents": broken, "sigmas": arrays["sigmas"][:-1]}
    found = {verdict.stage: verdict for verdict in judge(vectors, measured)}
    assert found["latents"].state == found["sigmas"].state == "failed"
    assert "not a finite number" in found["latents"].problem
    assert "shape (3,), must be (4,)" in found["sigmas"].problem
    assert found["noise"].state == "not measured"


def test_the_command_s_exit_codes(file, tmp_path, capsys):
    told = json.loads(file.read_text(encoding="utf-8"))
    part = {"noise": told["stages"]["noise"]}
    assert call("--results", changed(file, tmp_path, stages=part)) == 1
    assert "text_ids (tokenizer: ids of golden.json's texts): not measured" in capsys.readouterr().err
    assert call("--results", changed(file, tmp_path, stages=part), "--stages", "noise") == 0
    assert call("--stages", "noize") == 2
    assert call("--results", file, "-o", tmp_path / "x.json") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"bundle": "0" * 64}, "measured on bundle 000000000000…"),
        ({"stages": {"noize": {"dtype": "float32", "shape": [1], "data": "AAAAAA=="}}}, "did you mean 'noise'"),
        ({"stages": {"noise": {"dtype": "float32", "shape": [2], "data": "AAAAAA=="}}}, "noise: not float32 of shape"),
        ({"stages": {"noise": {"dtype": "float32", "shape": [-1], "data": "AAAAAA=="}}}, "negative size"),
        ({"stages": {"noise": {"dtype": "float32", "shape": [1], "data": "A*A"}}}, "in base64"),
        ({"stages": {"noise": {"dtype": "float64", "shape": [1], "data": ""}}}, "must be one of"),
        ({"app": 3}, "app is 3, must be a string"),
    ],
)
def test_files_that_are_no_results(file, tmp_path, capsys, changes, message):
    assert call("--results", changed(file, tmp_path, **changes)) == 5
    assert message in capsys.readouterr().err


def test_missing_and_torn_files(file, tmp_path, capsys):
    assert call("--results", tmp_path / "none.json") == 5
    (tmp_path / "torn.json").write_text(file.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    assert call("--results", tmp_path / "torn.json") == 5
    assert "not valid JSON" in capsys.readouterr().err


def test_a_bundle_without_golden_vectors(hand_bundle, capsys):
    assert call(hand_bundle) == 5
    assert "has no golden/golden.json; convert the model again" in capsys.readouterr().err


def test_a_tolerance_that_nobody_stored(vectors, arrays):
    bare = replace(vectors, settings=replace(vectors.settings, tolerances={}))
    with pytest.raises(BundleError, match="no tolerance for latents"):
        judge(bare, arrays, ["latents"])


def test_the_fake_runtime_fails_at_the_first_network(bundle, vectors):
    found = conformance.own(bundle, vectors, "fake")
    with pytest.raises(GateError, match="last_hidden_state"):
        conformance.gate(judge(vectors, found))
