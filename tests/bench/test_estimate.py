"""`bench estimate`: the fit finds what was put in, its error is measured honestly, and nothing passes for a measurement."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import record
from bench.estimate import EstimateConfig, error, errors, estimate, state
from bench.published import Cost, Device, Family, Published, PublishedRow, published
from bench.roofline import FAR, UNKNOWN, Model, shipped
from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import read_json
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.bench.records import BASELINE

TRUE = np.array([1.7, 2.5, 0.004])
SIZES = {
    "text_encoder": Cost(7 * 10**9, 10**8),
    "unet": Cost(4 * 10**11, 9 * 10**8),
    "vae_decoder": Cost(10**12, 10**7),
}


def seconds(device: Device, cost: Cost, batch: int) -> float:
    return float(TRUE @ [batch * cost.macs / device.macs_per_s, cost.parameters / device.bytes_per_s, 1])


def synthetic(noise: float = 0.0) -> Published:
    """Six chips of one family that obey the model, but for lognormal noise."""
    rng = np.random.default_rng(0)
    devices = {
        f"d{i}": Device(
            f"Device {i}", f"chip {i}", "npu", 10 ** rng.uniform(12, 13.5), 10 ** rng.uniform(10, 11), ("",)
        )
        for i in range(6)
    }
    rows = [
        PublishedRow(
            name, "sd", what, 1, 1, seconds(about, cost, 1) * float(np.exp(noise * rng.standard_normal())), "", ""
        )
        for name, about in devices.items()
        for what, cost in SIZES.items()
    ]
    devices["bare"] = Device("Bare", "none", "npu", 1e13, 1e10, ("",))
    return Published(1, {"sd": SIZES}, {"npu": Family("a test", 8, "")}, devices, tuple(rows))


def counters() -> dict:
    return {name: {"macs": cost.macs, "parameters": cost.parameters} for name, cost in SIZES.items()}


def test_the_fit_finds_the_coefficients_and_left_out_chips() -> None:
    model = Model.of(synthetic())
    assert model.coefficients["npu"] == pytest.approx(TRUE, rel=1e-6)
    assert max(abs(left.error) for left in model.left_out["npu"]) < 1e-6


def test_the_measured_error_is_that_of_the_noise() -> None:
    model = Model.of(synthetic(noise=0.2))
    assert 0.05 < model.error("npu") < 0.3


def test_a_left_out_chip_has_no_part_in_its_own_estimate() -> None:
    """One chip's rows made ten times as slow move the estimates of the others, not its own."""
    before = synthetic(noise=0.1)
    rows = [replace(row, seconds=10 * row.seconds) if row.device == "d0" else row for row in before.rows]
    after = replace(before, rows=tuple(rows))
    own, others = ([], [])
    for a, b in zip(Model.of(before).left_out["npu"], Model.of(after).left_out["npu"], strict=True):
        (own if a.row.device == "d0" else others).append(b.seconds / a.seconds)
    assert own == pytest.approx([1] * 3) and min(others) > 1.01


def test_a_picture_is_the_sum_of_its_calls() -> None:
    model = Model.of(synthetic())
    found = model.estimate("d1", counters(), steps=20, guidance=7.5)
    about = model.data.devices["d1"]
    calls = [seconds(about, cost, 1 if name == "vae_decoder" else 2) for name, cost in SIZES.items()]
    assert list(found.calls_s.values()) == pytest.approx(calls)
    assert found.picture_s == pytest.approx(calls[0] + 20 * calls[1] + calls[2])
    assert (found.state, found.method, found.rows) == ("estimated", "fit", 18)
    alone = model.estimate("d1", counters(), steps=4, guidance=1.0)
    assert alone.calls_s["unet"] == pytest.approx(seconds(about, SIZES["unet"], 1))


def test_a_device_without_a_row_gets_the_roofline_and_no_error() -> None:
    found = Model.of(synthetic()).estimate("bare", counters(), 1, 1.0)
    assert (found.method, found.error) == ("roofline", UNKNOWN)
    assert found.calls_s["unet"] == pytest.approx(max(4e11 / 1e13, 9e8 / 1e10))
    assert "at least" in state(found) and error(found) == UNKNOWN


def test_one_chip_alone_has_no_error() -> None:
    data = synthetic()
    model = Model.of(replace(data, rows=tuple(row for row in data.rows if row.device == "d0")))
    assert model.left_out["npu"] == [] and model.error() == UNKNOWN
    assert "one chip" in state(model.estimate("d0", counters(), 1, 1.0))


def test_calls_far_below_the_published_ones_are_said_to_be() -> None:
    small = {name: {**part, "macs": 10**8} for name, part in counters().items()}
    found = Model.of(synthetic()).estimate("d0", small, 4, 1.0)
    assert found.beyond and SIZES["text_encoder"].macs > 10**8 * FAR
    assert "far below" in state(found) and error(found) == UNKNOWN


def test_what_nobody_counted_is_not_estimated() -> None:
    assert Model.of(synthetic()).estimate("d0", {**counters(), "unet": {"macs": None, "parameters": 1}}, 4, 1.0) is None


def test_every_published_row_has_a_source_and_its_conditions() -> None:
    data = published()
    assert all(row.source and row.conditions for row in data.rows) and len(data.rows) >= 50
    assert all(device.sources and all(device.sources) for device in data.devices.values())


def test_the_published_models_are_counted_by_our_own_rule() -> None:
    """SD 1.x's U-Net as the counter's own documentation has it."""
    cost = published().models["sd-1.5"]["unet"]
    assert (cost.parameters, round(cost.macs / 1e9, 1)) == (859_520_964, 401.6)


def test_the_floor_of_the_published_rows() -> None:
    model = shipped()
    assert sum(map(len, model.left_out.values())) == 51
    assert model.error() <= 0.30
    assert max(model.error(name) for name, left in model.left_out.items() if left) <= 0.30


def test_the_documented_errors_are_the_measured_ones() -> None:
    text = (BASELINE.parents[1] / "docs" / "bench.md").read_text(encoding="utf-8")
    assert "\n".join(errors(shipped())) in text


def test_the_command_prints_estimates_errors_and_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EstimateConfig((DEFAULT_BUNDLE,), ("iphone-14,galaxy-s25", "raspberry-pi-5"), tmp_path / "e.json")
    data = estimate(config)
    said = capsys.readouterr().err
    assert [each["device"] for each in data["estimates"]] == ["iphone-14", "galaxy-s25", "raspberry-pi-5"]
    assert {each["state"] for each in data["estimates"]} == {"estimated"}
    assert said.count("estimated") == 3 and "chip left out" in said and "bare roofline" in said
    assert read_json(tmp_path / "e.json")["median_error"] == data["median_error"]


def test_a_record_and_its_bundle_have_one_estimate() -> None:
    shipped_record = record.read(BASELINE)
    settings = shipped_record.settings
    found = shipped().estimate("iphone-14", shipped_record.bundle["counters"], settings.steps, settings.guidance)
    (same,) = estimate(EstimateConfig((DEFAULT_BUNDLE,), ("iphone-14",)))["estimates"]
    assert same["picture_s"] == found.picture_s


@pytest.mark.parametrize(
    ("bundles", "device", "complaint"),
    [
        ((DEFAULT_BUNDLE,), ("iphone-41",), "did you mean 'iphone-14'"),
        ((), ("iphone-14",), "no bundle to estimate for"),
    ],
)
def test_impossible_settings(bundles: tuple, device: tuple, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        estimate(EstimateConfig(bundles, device))


@pytest.mark.parametrize("change", [{"device": "nobody"}, {"seconds": 0.0}, {"steps": 3}, {"source_": "x"}])
def test_rows_that_cannot_be_meant_are_refused(change: dict) -> None:
    data = schema.dump(published())
    data["rows"][0] |= change
    with pytest.raises(BundleError):
        schema.parse(Published, data, "published.json")
