"""Plans: by name, by operator, by default; what a target does not have; what a file may say; sizes told before."""

import json
from pathlib import Path

import pytest

from convert.apple import schemes
from convert.apple.schemes import PRECISIONS, Linear, Palette, Plan, Sparse, bits, evened, floor_db, read_plans, require
from kdc_edge.errors import UsageError

NEW = [Palette(3), Palette(4, group=8), Palette(4, int8_table=True), Linear(4), Linear(8, block=32)]
NEW += [Sparse(0.5, Palette(4)), Sparse(0.5, Linear(8))]
OLD = [None, Palette(8), Palette(6), Palette(4), Palette(2), Palette(4, uniform=True), Linear(8), Sparse(0.5)]


def test_a_name_comes_before_an_operator_and_that_before_the_default():
    plan = Plan(Palette(4), {"conv": Palette(6), "gather": None}, {"conv_in*": Linear(8)})
    assert plan.of("conv_in.weight", "conv") == Linear(8)
    assert plan.of("conv_out.weight", "conv") == Palette(6)
    assert plan.of("token_embedding.weight", "gather") is None
    assert plan.of("proj.weight", "linear") == Palette(4)


@pytest.mark.parametrize("target", ["ios16", "ios17"])
@pytest.mark.parametrize("scheme", NEW, ids=repr)
def test_what_came_with_ios_18_is_refused_before(scheme, target: str):
    for plan in (Plan(scheme), Plan(ops={"conv": scheme}), Plan(names={"*": scheme})):
        with pytest.raises(UsageError, match=f"ios18 on, not by {target}"):
            require({"unet": plan}, target)
        require({"unet": plan}, "ios18")


@pytest.mark.parametrize("scheme", OLD, ids=repr)
def test_the_rest_is_read_everywhere(scheme):
    for target in ("ios16", "ios17", "ios18"):
        require({"unet": Plan(scheme)}, target)


def test_embeddings_stay_as_they_are_in_every_precision():
    for plans in PRECISIONS.values():
        assert all(plan.of("embedding", "gather") is None for plan in plans.values())


def test_floors():
    floors = {name: floor_db(plans["unet"], name) for name, plans in PRECISIONS.items()}
    assert floors["fp32"] == 90
    assert floors["fp16"] == 50
    assert floors["int8"] == floors["palette8"] == 33
    assert floors["palette6"] == floors["int4"] == 0


def test_a_plan_file(tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"unet": {"default": {"sparse": 0.5, "then": {"palette": 4}}, "ops": {"gather": None}}}))
    plans = read_plans(path)
    assert plans["unet"].default == Sparse(0.5, Palette(4))
    assert plans["vae_decoder"] == Plan()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"unett": {}}', "did you mean 'unet'"),
        ('{"unet": {"default": {"palette": 5}}}', "must be one of 1, 2, 3, 4, 6, 8"),
        ('{"unet": {"default": {"pallete": 4}}}', "palette"),
        ('{"unet": {"default": {"sparse": 2.0}}}', "default"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_plan_file_is_a_usage_error(text: str, says: str, tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_plans(path)


def test_names_and_operators_that_fit_nothing_are_refused():
    with pytest.raises(UsageError, match=r"named 'conv_inn\*'"):
        schemes.check_names(Plan(names={"conv_inn*": None}), ["conv_in.weight"], ["conv"])
    with pytest.raises(UsageError, match="did you mean 'conv'"):
        schemes.check_names(Plan(ops={"convv": None}), ["conv_in.weight"], ["conv"])


def test_even_palettes_are_a_choice_for_all():
    assert evened(Plan(Palette(4), {"conv": Palette(6)})) == Plan(Palette(4, True), {"conv": Palette(6, True)})


def test_bits_of_a_weight():
    assert [bits(s) for s in (None, Palette(6), Linear(8), Linear(4, 32), Sparse(0.5))] == [16, 6, 8, 4.5, 9]
