"""Decibels and gates against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert import pictures
from convert.parity import EQUAL_DB, Call, Parity, check, gate, max_abs, psnr_db, snr_db
from kdc_edge.errors import GateError
from kdc_edge.ports import Ports

RAMP = np.linspace(-1, 1, 101, dtype=np.float64)


@given(st.floats(-150, 150))
def test_snr_of_a_known_error(db: float):
    """An error of 10^(-dB/20) of the signal has that many dB."""
    assert snr_db(RAMP, RAMP * (1 + 10 ** (-db / 20))) == pytest.approx(db, abs=0.1 if db > 120 else 1e-3)


@pytest.mark.parametrize(
    ("reference", "out", "wanted"),
    [
        (RAMP, RAMP, EQUAL_DB),
        (np.zeros(3), np.zeros(3), EQUAL_DB),
        (np.zeros(3), np.ones(3), -EQUAL_DB),
        (RAMP, np.full(101, np.nan), math.nan),
        (RAMP, np.full(101, np.inf), math.nan),
        (RAMP, RAMP[:50], math.nan),
    ],
)
def test_snr_at_the_edges(reference: np.ndarray, out: np.ndarray, wanted: float):
    assert snr_db(reference, out) == pytest.approx(wanted, nan_ok=True)


def test_psnr_of_a_known_error():
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert psnr_db(grey, grey + np.uint8(10)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr_db(grey, grey) == EQUAL_DB


@pytest.mark.parametrize("db", [(95.0, 50.0), (95.0, math.nan), (math.nan, 95.0)])
def test_the_worst_call_decides_and_nan_fails(db: tuple[float, ...]):
    with pytest.raises(GateError, match=r"unet .* dB, floor 90"):
        gate([Parity("vae_decoder", 90, (99.0,), 0.0), Parity("unet", 90, db, 0.0)])


def test_what_is_above_its_floor_passes():
    gate([Parity("unet", 90, (90.0, 120.0), 0.0)])


def test_a_nan_is_null_in_the_report():
    told = Parity("unet", 90, (math.nan,), math.nan).to_json()
    assert (told["snr_db"], told["calls_db"], told["max_abs"], told["passed"]) == (None, [None], None, False)


class Off:
    """A runtime whose second call is wrong by `error`."""

    ports = Ports((), ())

    def __init__(self, error: float) -> None:
        self.errors = iter([0.0, error])

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"out": inputs["x"] + next(self.errors)}

    def close(self) -> None: ...


def test_check_replays_the_recorded_calls():
    calls = [Call({"x": RAMP}, {"out": RAMP})] * 2
    found = check("unet", calls, Off(0.01), 90)
    assert found.db[0] == EQUAL_DB
    assert found.worst == pytest.approx(snr_db(RAMP, RAMP + 0.01))
    assert found.deviation == pytest.approx(0.01)


def test_deviation_is_nan_once_anything_is():
    assert math.isnan(check("unet", [Call({"x": RAMP}, {"out": RAMP})] * 2, Off(math.nan), 90).deviation)
    assert math.isnan(max_abs(RAMP, RAMP[:3]))


def picture(*levels: int) -> np.ndarray:
    """One picture (1, 8, 8, 3) of stripes."""
    return np.resize(np.array(levels, np.uint8), (8, 8))[None, :, :, None].repeat(3, -1)


def test_a_flat_picture_fails_only_where_the_reference_has_one():
    with pytest.raises(GateError, match="flat"):
        pictures.gate(["x"], picture(10, 200), picture(10))
    pictures.gate(["x"], picture(10), picture(10))
    pictures.gate(["x"], picture(10, 200), picture(11, 199))


def test_more_saturation_than_the_reference_fails():
    with pytest.raises(GateError, match="saturated"):
        pictures.gate(["x"], picture(10, 200), picture(0, 200))
    pictures.gate(["white background"], picture(255, 200), picture(255, 200))
