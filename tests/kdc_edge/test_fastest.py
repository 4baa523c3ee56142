"""Runtime `auto`: measured once, remembered, said."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, KdcError, MissingBackend, ResourceError, UsageError
from kdc_edge.pipeline import Pipeline
from kdc_edge.runtimes import AUTO, Options, Own, fastest, openvino, ort, own

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.fixture
def bundle(hand_bundle: Path) -> Bundle:
    return Bundle.open(hand_bundle)


def absent() -> list[str]:
    raise MissingBackend("it is not installed; pip install it")


def test_the_picture_is_the_chosen_runtimes_and_the_choice_is_told(bundle: Bundle, tmp_path: Path):
    with Pipeline.open(bundle, AUTO, Options(threads=1, cache_dir=tmp_path)) as pipe:
        assert pipe.choice is not None and not pipe.choice.remembered
        drawn = np.asarray(pipe.generate("red apple", seed=3, steps=2))
        chosen = pipe.choice.runtime
        assert str(pipe.choice).startswith(f"runtime {chosen}, measured now: {chosen} ")
        assert min(pipe.choice.seconds.values()) == pipe.choice.seconds[chosen] > 0
    with Pipeline.open(bundle, chosen, Options(threads=1)) as pipe:
        assert pipe.choice is None
        assert np.array_equal(drawn, np.asarray(pipe.generate("red apple", seed=3, steps=2)))


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_the_faster_one_is_chosen_and_measured_once(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []
    monkeypatch.setattr(
        fastest, "_seconds", lambda _, name, __: measured.append(name) or {"ort": 2, "openvino": 1}[name]
    )
    options = Options(cache_dir=tmp_path)
    first, second = fastest.fastest(bundle, options), fastest.fastest(bundle, options)
    assert (first.runtime, second.runtime, second.remembered) == ("openvino", "openvino", True)
    assert measured == ["ort", "openvino"]
    assert not fastest.fastest(bundle, Options(threads=2, cache_dir=tmp_path)).remembered
    monkeypatch.setattr(openvino, "available", absent)  # uninstalled since
    assert fastest.fastest(bundle, options).seconds == {"ort": 2}


def test_a_bundles_own_runtime_is_the_first_that_can_be_had(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    assert own(bundle) == Own("ort")
    with Pipeline.open(bundle, None) as pipe:
        assert pipe.choice is None
    monkeypatch.setattr(ort, "available", absent)
    monkeypatch.setattr(openvino, "available", lambda: ["cpu"])
    assert str(own(bundle)) == "runtime openvino: it is not installed; pip install it"
    monkeypatch.setattr(openvino, "available", absent)
    with pytest.raises(MissingBackend, match=r"^it is not installed; pip install it$"):
        own(bundle)


def test_what_cannot_be_chosen(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="provider cpu belongs to one runtime; name that instead of auto"):
        fastest.fastest(bundle, Options(provider="cpu", cache_dir=tmp_path))
    for module in (ort, openvino):
        monkeypatch.setattr(module, "available", absent)
    with pytest.raises(MissingBackend, match="pip install it"):
        fastest.fastest(bundle, Options(cache_dir=tmp_path))


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("error", [BundleError, MissingBackend, ResourceError])
def test_the_next_one_is_taken_where_the_fastest_does_not_open_the_bundle(
    error: type[KdcError], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(fastest, "_seconds", lambda _, name, __: {"ort": 2, "openvino": 1}[name])
    options = Options(threads=1, cache_dir=tmp_path)
    assert fastest.fastest(bundle, options).runtime == "openvino"

    def broken(*_: object) -> None:
        raise error("its driver is gone")

    monkeypatch.setattr(openvino, "open", broken)
    with Pipeline.open(bundle, AUTO, options) as pipe:
        assert (pipe.choice.runtime, pipe.choice.remembered) == ("ort", True)
        assert "openvino" not in str(pipe.choice)
    assert "runtime openvino does not open the bundle: its driver is gone; another one is taken" in caplog.text
    monkeypatch.setattr(ort, "open", broken)
    with pytest.raises(error, match="its driver is gone"):
        Pipeline.open(bundle, AUTO, options)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_one_that_cannot_be_measured_is_passed_over_and_not_asked_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    asked = []

    def seconds(_: Bundle, name: str, __: Options) -> float:
        asked.append(name)
        if name == "openvino":
            raise BundleError("an operator is missing")
        return 1.0

    monkeypatch.setattr(fastest, "_seconds", seconds)
    options = Options(cache_dir=tmp_path)
    found = [fastest.fastest(bundle, options) for _ in range(2)]
    assert [choice.seconds for choice in found] == [{"ort": 1.0}] * 2
    assert asked == ["ort", "openvino"] and "an operator is missing; another one is taken" in caplog.text


@pytest.mark.parametrize(
    "record", ["{", "[1]", '{"ort": "fast"}', '{"ort": true}', '{"ort": -1}', '"ort"', "\x00", "null"]
)
def test_a_damaged_record_is_measured_again(
    record: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(fastest, "_installed", lambda _: ["ort"])
    monkeypatch.setattr(fastest, "_seconds", lambda *_: 1.0)
    options = Options(cache_dir=tmp_path)
    assert not fastest.fastest(bundle, options).remembered
    (path,) = tmp_path.glob("*/seconds.json")
    path.write_text(record)
    choices = [fastest.fastest(bundle, options) for _ in range(2)]
    assert [choice.remembered for choice in choices] == [False, True] and choices[0].runtime == "ort"
    assert len(caplog.messages) == 1 and "measured anew" in caplog.text and str(path) in caplog.text
