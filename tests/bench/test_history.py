"""`bench history`: what is kept, that nothing is lost or kept twice, what is refused, and where a series changed."""

import csv
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import database
from bench.changes import change_points
from bench.database import Wanted, opened
from bench.figures import figures
from bench.history import HistoryConfig, history, series
from bench.record import NOT_MEASURED
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import read_json, write_json
from tests.bench.records import BASELINE, made, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def keep(path: Path, *files: Path) -> dict:
    return history(HistoryConfig(tuple(files), path))


def test_a_run_is_kept_once_however_often_it_is_imported(path: Path, tmp_path: Path) -> None:
    files = write(tmp_path / "runs", [made(1), made(2), made(2, "b")])
    assert keep(path, *files)["added"] == 3
    before = path.read_bytes()
    assert keep(path, tmp_path / "runs") == {**keep(path, files[1]), "added": 0}
    assert path.read_bytes() == before


def test_figures_are_the_records_own(path: Path) -> None:
    keep(path, BASELINE)
    with opened(path) as found:
        rows = {row.metric: row for row in found.rows()}
    data = read_json(BASELINE)
    assert rows["unet.p50_s"].value == np.median(data["latency"]["unet"]["warm_wall_s"])
    assert rows["unet.macs"].value == 187_410_432 and rows["bytes"].value == data["bundle"]["bytes"]
    assert rows["unet.snr_db"].value == data["parity"]["unet"]["snr_db"]
    assert rows["bytes"].bundle == data["bundle"]["id"] and rows["bytes"].revision == data["revision"]
    assert "joules_per_picture" not in rows, "what was not measured has no figure"


def test_quality_is_kept_by_prompt_set() -> None:
    number = {"value": 0.7, "low": 0.6, "high": 0.8}
    cards = {"cards": [{"prompts": "emoji.tar:trained", "kind": "bundle", "numbers": {"clip": number}}]}
    assert figures(made(quality=cards))["quality.trained.clip"] == 0.7
    assert not [name for name in figures(made(quality=NOT_MEASURED)) if name.startswith("quality")]


def test_a_finished_run_takes_the_place_of_its_beginning(path: Path, tmp_path: Path) -> None:
    whole = made(1)
    cut = replace(whole, complete=False, latency={**whole.latency, "picture": whole.latency["unet"]})
    first, second = write(tmp_path / "runs", [cut, whole])
    assert keep(path, first)["runs"] == keep(path, second)["runs"] == keep(path, first)["runs"] == 1
    with opened(path) as found:
        assert {row.complete for row in found.rows()} == {1}


def test_runs_of_other_threads_are_another_series(path: Path) -> None:
    settings = made().settings
    with opened(path) as found:
        found.add([made(day, settings=replace(settings, threads=1 + day % 2)) for day in range(8)])
        assert sorted(map(len, series(found.rows(Wanted(metric="picture.p50_s"))).values())) == [4, 4]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(), 4),
        (Wanted(device="amd epyc"), 3),
        (Wanted(device="elsewhere"), 1),
        (Wanted(bundle="bb"), 1),
        (Wanted(bundle="bundle-a"), 3),
        (Wanted(revision="abc"), 1),
        (Wanted(bundle="%"), 0),
    ],
)
def test_figures_by_device_bundle_and_revision(path: Path, wanted: Wanted, count: int) -> None:
    other = {"fingerprint": "elsewhere", "machine": made().machine | {"processor": "Cortex-A76"}}
    with opened(path) as found:
        assert found.add([made(1), made(2, revision="abc123"), made(3, "b"), made(4, **other)]) == 4
        assert len({row.key for row in found.rows(wanted)}) == count
        assert {row.metric for row in found.rows(replace(wanted, metric="unet.p"))} <= {
            *("unet.p50_s", "unet.p90_s", "unet.p99_s", "unet.prepare_s", "unet.parameters")
        }


def test_what_is_chosen_is_written_as_lines_and_as_a_table(path: Path, tmp_path: Path) -> None:
    keep(path, *write(tmp_path / "runs", [made(1), made(2, scale=2)]))
    for name in ("out.jsonl", "out.csv"):
        history(HistoryConfig(database=path, metric="picture.p50_s", output=tmp_path / name))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert lines[1]["value"] == pytest.approx(2 * lines[0]["value"])
    assert [float(row["value"]) for row in table] == [line["value"] for line in lines]
    assert list(table[0]) == list(lines[0])


def test_processes_that_import_at_once_lose_nothing(path: Path, tmp_path: Path) -> None:
    """Into a file that neither has made yet."""
    shared = [made(day) for day in range(5)]
    processes = []
    for name in "ab":
        write(tmp_path / name, shared + [made(day, name) for day in range(10, 30)])
        command = [sys.executable, "-m", "bench", "history", str(tmp_path / name), "--database", str(path)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    with opened(path) as found:
        assert found.count() == 45
        assert len(found.rows(Wanted(metric="picture.p50_s"))) == 45


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def scrawl(data: bytes) -> bytes:
    return data[:8192] + b"\xa5" * 8192 + data[16384:]


@pytest.mark.parametrize("damage", [cut, scrawl, lambda _: b"no database at all" * 100], ids=["cut", "scrawl", "text"])
def test_a_damaged_database_is_refused_and_a_copy_kept(path: Path, tmp_path: Path, damage) -> None:
    files = write(tmp_path / "runs", [made(day) for day in range(9)])
    keep(path, *files[:8])
    spoiled = damage(path.read_bytes())
    path.write_bytes(spoiled)
    for i in (1, 2):
        with pytest.raises(BundleError, match=f"damaged.*damaged-{i} is a copy") as refused:
            keep(path, files[8])
        assert refused.value.exit_code == 5
        assert path.read_bytes() == path.with_name(f"{path.name}.damaged-{i}").read_bytes() == spoiled


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unable to open.*must be a file"):
        keep(tmp_path, BASELINE)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(BundleError, match="not a history"):
        keep(path, BASELINE)
    assert path.read_bytes() == before


def test_formats_are_brought_up_and_newer_ones_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(path, BASELINE)
    with monkeypatch.context() as later:
        later.setattr(database, "STEPS", (*database.STEPS, "ALTER TABLE runs ADD COLUMN note TEXT DEFAULT 'none'"))
        with opened(path) as found:
            assert found.count() == 1
        with sqlite3.connect(path) as raw:
            assert raw.execute("SELECT note FROM runs").fetchall() == [("none",)]
        raw.close()
    with pytest.raises(BundleError, match="format 2, this kdc-edge reads 1; update kdc-edge"):
        keep(path, BASELINE)


def test_a_bad_file_among_good_ones_keeps_none(path: Path, tmp_path: Path) -> None:
    files = write(tmp_path / "runs", [made(1), made(2)])
    write_json(files[1], read_json(files[1]) | {"format": 9})
    with pytest.raises(BundleError, match="format 9, this kdc-edge reads 1; update kdc-edge"):
        keep(path, *files)
    assert not path.exists()


def test_what_is_no_record_is_named_in_a_folder_and_refused_by_name(path: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path / "runs", [made(1)])
    write_json(tmp_path / "runs" / "summary.json", [])
    assert keep(path, tmp_path / "runs")["added"] == 1
    assert "passed over summary.json" in capsys.readouterr().err
    with pytest.raises(BundleError, match="not a record"):
        keep(path, tmp_path / "runs" / "summary.json")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"metric": "unit."}, "did you mean 'unet.'"),
        ({"metric": "picture.p50"[::-1]}, "no figures of metric"),
        ({"bundle": "nobody", "device": "nothing"}, "no figures of device nothing, bundle nobody"),
        ({"output": Path("x.xlsx")}, "written as .jsonl or .csv"),
        ({"database": Path("nowhere.sqlite")}, "no such history"),
        ({"database": Path(__file__).parent}, "no such history"),
    ],
)
def test_an_empty_choice_is_told(path: Path, changes: dict, complaint: str) -> None:
    keep(path, BASELINE)
    with pytest.raises(UsageError, match=complaint):
        history(replace(HistoryConfig(database=path), **changes))


def noisy(*levels: float, each: int = 10, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [level * (1 + 0.01 * rng.standard_normal()) for level in levels for _ in range(each)]


def test_steps_are_found_where_they_are() -> None:
    assert change_points(noisy(1.0, 1.1)) == [10]
    assert change_points(noisy(1.0, 0.9, 1.2)) == [10, 20]
    assert change_points([1.0] * 6 + [2.0] * 6) == [6]


def test_noise_and_an_outlier_are_no_change() -> None:
    false = sum(bool(change_points(noisy(1.0, each=20, seed=seed))) for seed in range(100))
    assert false <= 8, f"{false} of 100 series without a change have one at level 0.02"
    assert change_points([1.0, 1.01, 0.99, 1.0, 5.0, 1.01, 1.0, 0.99, 1.0, 1.01]) == []
    assert change_points([1.0] * 30) == change_points([1, 9, 1, 9]) == change_points([]) == []
