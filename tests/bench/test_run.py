"""`bench run`: the record it writes, what other tools read of it, and what bad input gets."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import exports, record, roof
from bench.__main__ import main
from bench.compare import CompareConfig, compare
from bench.run import RunConfig, parse_duration, run
from bench.side import WHAT
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, GateError, UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.pipeline import COMPONENTS
from tests.kdc_edge import builders

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(hand_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One interleaved run of a bundle against itself, and its files."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roof, "COPY_BYTES", 1 << 20)
        settings = {"interleave": True, "samples": 9, "soak": "1s", "threads": 1, "cache_dir": folder / "compiled"}
        run(RunConfig((hand_bundle, hand_bundle), folder / "b", **settings))
    return folder / "b"


@pytest.fixture
def records(folder: Path) -> list[record.Record]:
    return [record.read(path) for path in sorted(folder.glob("2*.json"))]


def test_a_record_says_what_was_measured_on_what(records: list[record.Record], folder: Path, hand_bundle: Path) -> None:
    first, found = records
    assert first.against is None and first.complete
    assert found.complete and found.bundle["id"] == Bundle.open(hand_bundle).id
    assert set(found.latency) == set(WHAT)
    assert [len(found.latency[what].warm_wall_s) for what in WHAT] == [9, 9, 9, 3]
    assert found.latency["unet"].batch == 2 and found.latency["vae_decoder"].batch == 1
    assert all(latency.prepare_s > 0 and latency.first_s > 0 for latency in found.latency.values())
    assert found.peak_rss_mib > 20 and found.open_s > 0
    assert found.placement["unet"] == {"cpu": 6}
    assert found.settings.threads == 1 and found.versions["onnxruntime"]
    assert len(list((folder.parent / "compiled").glob("*/model.onnx"))) == len(COMPONENTS)
    assert found.parity == record.NOT_MEASURED
    assert found.roof["macs_per_s"]["fp32"] > 1e8
    assert sum(minute.pictures for minute in found.soak) > 1
    assert found.against.wall["unet"].low <= found.against.wall["unet"].ratio <= found.against.wall["unet"].high


def test_the_summary_names_the_machine_and_says_what_was_not_measured(folder: Path) -> None:
    text = (folder / exports.SUMMARY).read_text()
    assert "onnxruntime" in text and "1 thread;" in text and "not measured" in text and "hand fp32" in text


def test_pytest_benchmark_reads_what_it_gets(folder: Path, tmp_path: Path) -> None:
    assert len(read_json(folder / exports.PYTEST)["benchmarks"]) == 2 * len(WHAT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(folder / exports.PYTEST)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "hand fp32: unet" in done.stdout


def test_the_list_for_dashboards_has_values_and_units(folder: Path) -> None:
    found = read_json(folder / exports.GITHUB)
    assert {entry["unit"] for entry in found} == {"ms", "bytes", "MiB"}
    assert all(entry["value"] > 0 and entry["name"] for entry in found)


def test_statistics_are_pytest_benchmarks_own() -> None:
    from pytest_benchmark.stats import Stats

    from kdc_edge.timing import Samples

    data = [0.011, 0.012, 0.010, 0.019, 0.0125, 0.0105, 0.013]
    theirs = Stats()
    for value in data:
        theirs.update(value)
    ours = exports.statistics(Samples(tuple(data), tuple(data), 0))
    for name in ("min", "max", "mean", "stddev", "median", "total", "ops", "rounds", "stddev_outliers"):
        assert ours[name] == pytest.approx(getattr(theirs, name)), name


def test_two_runs_of_one_bundle_are_compared_and_said_to_be_recorded(folder: Path, capsys) -> None:
    paths = sorted(folder.glob("2*.json"))
    data = compare(CompareConfig(paths[0], paths[-1]))
    assert data["results"]["unet"]["low"] <= data["results"]["unet"]["ratio"] <= data["results"]["unet"]["high"]
    assert "not interleaved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bundle": {"id": "f" * 64}}, "recordings of different bundles"),
        ({"fingerprint": "elsewhere"}, "different machines"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    folder: Path, records: list[record.Record], tmp_path: Path, change: dict, complaint: str
) -> None:
    path = sorted(folder.glob("2*.json"))[0]
    if "bundle" in change:
        change = {"bundle": records[0].bundle | change["bundle"]}
    record.write(tmp_path / "other.json", replace(records[0], **change))
    with pytest.raises(UsageError, match=complaint):
        compare(CompareConfig(path, tmp_path / "other.json"))


def test_a_bundle_and_a_record_cannot_take_turns(folder: Path, hand_bundle: Path) -> None:
    with pytest.raises(UsageError, match="cannot take turns"):
        compare(CompareConfig(sorted(folder.glob("2*.json"))[0], hand_bundle))


def test_a_newer_record_and_a_file_that_is_none(folder: Path, tmp_path: Path) -> None:
    path = sorted(folder.glob("2*.json"))[0]
    write_json(tmp_path / "newer.json", read_json(path) | {"format": 2})
    with pytest.raises(BundleError, match="format 2, this kdc-edge reads 1; update kdc-edge"):
        record.read(tmp_path / "newer.json")
    with pytest.raises(BundleError, match="not a record"):
        record.read(folder / exports.GITHUB)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"samples": 0}, "--samples is 0"),
        ({"bundles": ()}, "no bundle"),
        ({"interleave": True}, "two bundles or more"),
        ({"soak": "ten minutes"}, "write for example"),
        ({"runtime": "rot"}, "did you mean 'ort'"),
        ({"provider": "cuba"}, "did you mean 'cuda'"),
    ],
)
def test_impossible_settings(hand_bundle: Path, tmp_path: Path, changes: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        run(replace(RunConfig((hand_bundle,), tmp_path / "b"), **changes))
    assert not (tmp_path / "b").exists()


def test_a_damaged_bundle_is_not_timed(hand_bundle: Path, tmp_path: Path, capsys) -> None:
    import shutil

    copy = shutil.copytree(hand_bundle, tmp_path / "copy")
    (copy / "unet" / "model.onnx").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(["run", str(copy), "-o", str(tmp_path / "b")])
    assert stop.value.code == 5 and "fetch the bundle again" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_draws_nothing_gets_no_speed(tmp_path: Path) -> None:
    flat = builders.write_bundle(tmp_path / "flat", replace(builders.SPEC, latent_scaling=1e9))
    with pytest.raises(GateError, match="flat"):
        run(RunConfig((flat,), tmp_path / "b", samples=3, threads=1))
    assert not list((tmp_path / "b").glob("2*.json"))


def test_a_killed_run_leaves_what_was_finished(hand_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "run", str(hand_bundle), "-o", str(tmp_path / "b"), "--soak", "1h"]
    process = subprocess.Popen([*command, "--samples", "3", "--threads", "1"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = [json.loads(path.read_text()) for path in (tmp_path / "b").glob("2*.json")]
        if found and all(latency["warm_wall_s"] for latency in found[0]["latency"].values()):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (path,) = (tmp_path / "b").glob("2*.json")
    kept = record.read(path)
    assert not kept.complete and len(kept.latency["picture"].warm_wall_s) == 3


def test_it_runs_with_only_the_core_and_onnxruntime(hand_bundle: Path, tmp_path: Path) -> None:
    """In an interpreter where nothing else can be imported."""
    allowed = {"numpy", "tokenizers", "PIL", "safetensors", "tyro", "tqdm", "onnxruntime", "kdc_edge", "bench"}
    core = {"typeguard", "typing_extensions", "docstring_parser", "rich", "pygments", "markdown_it", "mdurl", "shtab"}
    code = f"""
        import sys
        class Only:
            def find_spec(self, name, path=None, target=None):
                root = name.split(".")[0]
                if root not in {allowed | core!r} | set(sys.stdlib_module_names) and path is None:
                    raise ModuleNotFoundError(f"not in a lean environment: {{name}}", name=root)
        sys.meta_path.insert(0, Only())
        from bench.__main__ import main
        main(["run", {str(hand_bundle)!r}, "-o", {str(tmp_path / "b")!r}, "--samples", "3", "--threads", "1"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "b").glob("2*.json"))


def test_durations() -> None:
    assert [parse_duration(text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]
