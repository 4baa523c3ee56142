"""Sensors against made-up /sys trees, the roof against its own arithmetic."""

from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench import roof, sensors


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert sensors.temperature(tmp_path) is None and sensors.clock_mhz(tmp_path) is None
    with sensors.measure_energy(tmp_path) as energy:
        pass
    assert energy.joules is None and energy.source is None


def test_the_hottest_zone_the_mean_clock_and_the_governor(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "class/thermal/thermal_zone0/temp": 41500,
            "class/thermal/thermal_zone1/temp": 63250,
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1_000_000,
            "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 3_000_000,
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
        },
    )
    assert sensors.temperature(root) == 63.25
    assert sensors.clock_mhz(root) == 2000
    assert sensors.power_mode(root) == "performance"


def test_rapl_counts_joules_and_may_wrap(tmp_path: Path) -> None:
    packages = [f"class/powercap/intel-rapl:{i}" for i in range(2)]
    root = tree(tmp_path, {f"{package}/max_energy_range_uj": 10_000_000 for package in packages})
    tree(root, {f"{packages[0]}/energy_uj": 1_000_000, f"{packages[1]}/energy_uj": 9_000_000})
    with sensors.measure_energy(root) as energy:
        tree(root, {f"{packages[0]}/energy_uj": 3_000_000, f"{packages[1]}/energy_uj": 500_000})
    assert energy.joules == pytest.approx(2 + 1.5)


def test_a_jetsons_input_rail_times_the_time(tmp_path: Path) -> None:
    monitor = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    root = tree(
        tmp_path, {f"{monitor}/in1_label": "VDD_IN", f"{monitor}/in1_input": 5000, f"{monitor}/curr1_input": 2000}
    )
    ticks = count(0.0, 3.0)
    with sensors.measure_energy(root, clock=lambda: next(ticks)) as energy:
        tree(root, {f"{monitor}/curr1_input": 4000})
    assert energy.joules == pytest.approx((10 + 20) / 2 * 3)
    assert energy.source == "INA3221, whole board"


def test_powermetrics_says_milliwatts() -> None:
    text = "CPU Power: 900 mW\nGPU Power: 30 mW\nANE Power: 0 mW\nCombined Power (CPU + GPU + ANE): 930 mW\n"
    assert sensors.parse_powermetrics(text) == 0.93
    assert sensors.parse_powermetrics("powermetrics must be invoked as the superuser") is None


def test_device_memory_is_the_process_own() -> None:
    text = "4711, 812\n4712, 90\n4711, 100\n4713, [N/A]\n"
    assert sensors.parse_device_memory(text, 4711) == 912
    assert sensors.parse_device_memory(text, 4713) is None and sensors.parse_device_memory("", 1) is None


@pytest.mark.parametrize("name", roof.PROBES)
def test_a_probe_is_an_onnx_model_that_multiplies(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    operator, kinds, result, dtype = roof.PROBES[name]
    model = roof.graph(operator, kinds, result)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model)
    a = np.random.RandomState(0).randint(0, 3, (roof.N, roof.N))
    feed = {"a": a.astype(dtype), "b": a.astype(np.int8 if name == "int8" else dtype)}
    (out,) = session.run(None, feed)
    assert np.array_equal(out, (a @ a).astype(out.dtype))


def test_the_roof_is_above_the_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "COPY_BYTES", 1 << 24)
    found = roof.measure(threads=1)
    assert found.macs_per_s["fp32"] > 1e9 and found.bytes_per_s > 1e8
