import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError, choose, suggest


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    pair: tuple[int, str]
    many: tuple[Inner, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    flag: bool = False
    anything: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ValueError("has a name that is forbidden")


GOOD = {"name": "n", "kind": "a", "inner": {"size": 3}, "pair": [1, "x"]}
inners = st.builds(Inner, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
outers = st.builds(
    Outer,
    st.text().filter(lambda name: name != "forbidden"),
    st.sampled_from(["a", "b"]),
    inners,
    st.tuples(st.integers(), st.text()),
    st.lists(inners).map(tuple),
    st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    st.none() | st.integers(),
    st.booleans(),
    st.dictionaries(st.text(), st.integers() | st.text()),
)


@given(outers)
def test_what_is_dumped_parses_back(outer):
    assert schema.parse(Outer, json.loads(json.dumps(schema.dump(outer))), "here") == outer


def test_defaults_may_be_absent_and_whole_numbers_are_numbers():
    outer = schema.parse(Outer, GOOD | {"table": {"x": 2}}, "here")
    assert outer.inner == Inner(3) and outer.table == {"x": 2.0} and type(outer.table["x"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": 1}, "here: has a field 'nmae' that Outer does not know; did you mean 'name'?"),
        ({"inner": {"size": 1, "rato": 2}}, "inner has a field 'rato' that Inner does not know; did you mean 'ratio'?"),
        ({"inner": {}}, "inner lacks 'size'"),
        ({"inner": 3}, "inner is 3, must be an object"),
        ({"inner": {"size": "3"}}, 'inner.size is "3", must be an integer'),
        ({"inner": {"size": True}}, "inner.size is true, must be an integer"),
        ({"inner": {"size": 1.0}}, "inner.size is 1.0, must be an integer"),
        ({"flag": 1}, "flag is 1, must be true or false"),
        ({"kind": "c"}, 'kind is "c", must be one of a, b'),
        ({"pair": [1]}, "pair has 1 items, must have 2"),
        ({"pair": {}}, "pair is {}, must be a list"),
        ({"many": [{"size": 1}, {"size": None}]}, "many.1.size is null, must be an integer"),
        ({"table": {"x": "y"}}, 'table.x is "y", must be a number'),
        ({"table": []}, "table is [], must be an object"),
        ({"maybe": "x"}, 'maybe is "x", must be an integer'),
        ({"name": "forbidden"}, "has a name that is forbidden"),
        ({"name": ["x" * 100]}, "..."),
    ],
)
def test_what_does_not_fit_dies_with_its_path(change, message):
    with pytest.raises(BundleError) as caught:
        schema.parse(Outer, GOOD | change, "here")
    assert str(caught.value).startswith("here: ") and message in str(caught.value)


def test_a_document_that_is_no_object():
    with pytest.raises(BundleError, match="is null, must be an object"):
        schema.parse(Outer, None, "here")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_canonical_form_does_not_depend_on_order(data):
    backwards = dict(reversed(list(data.items())))
    assert schema.canonical(data) == schema.canonical(backwards)
    assert json.loads(schema.canonical(data)) == data


def test_canonical_form_is_frozen():
    assert schema.canonical({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'.encode()


def test_canonical_form_has_no_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        schema.canonical({"x": float("nan")})


def test_suggestions():
    assert suggest("chanels", ["channels", "layers"]) == "; did you mean 'channels'?"
    assert suggest("zzz", ["channels"]) == ""
    assert choose("a", ["a", "b"], "letter") == "a"
    with pytest.raises(UsageError, match="no sampler 'eular'; there are euler, ddim; did you mean 'euler'"):
        choose("eular", ["euler", "ddim"], "sampler")
