"""What a bad checkpoint, a full machine, a failed gate or a kill gets: one clear line, its exit code, nothing left behind."""

import contextlib
import errno
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import estimate, onnx
from convert.onnx import main
from convert.schemes import Static
from kdc_edge import Bundle, Checkpoint
from kdc_edge.files import replace_dir

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def convert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return done.value.code


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a conversion that must leave only `model` in `folder`."""
    code = convert("--model", folder / "model", "-o", folder / "out", *arguments)
    assert sorted(path.name for path in folder.iterdir()) in ([], ["model"])
    return code, capsys.readouterr().err


def truncate(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickle(model: Path) -> None:
    (model / WEIGHTS).rename(model / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "diffusion_pytorch_model.safetensors"),
        (pickle, "diffusion_pytorch_model.bin: a pickle"),
        (lambda model: (model / WEIGHTS).unlink(), "no .safetensors weights"),
        (lambda model: (model / "unet" / "config.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "kdc.json").write_text('{"format": 99}'), "update kdc-edge"),
        (lambda model: shutil.rmtree(model), "no such folder"),
    ],
    ids=["truncated", "pickle", "no weights", "broken config", "newer format", "nothing there"],
)
def test_a_damaged_checkpoint_is_exit_5(damage, says: str, copy: Path, tmp_path: Path, capsys):
    damage(copy)
    code, text = refused(capsys, tmp_path, "--components", "vae_decoder")
    assert code == 5
    assert says in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "arguments", [("--precision", "fp15"), ("--components", "vae"), ("--precison", "fp16"), ("--steps", "few")]
)
def test_an_unknown_value_or_flag_is_exit_2(arguments: tuple[str, ...], copy: Path, tmp_path: Path, capsys):
    assert refused(capsys, tmp_path, *arguments)[0] == 2


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--guidance", "-1")])
def test_an_impossible_default_is_refused(arguments: tuple[str, ...], copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *arguments)
    assert code == 2
    assert arguments[0].removeprefix("--") in text


def test_an_existing_output_is_exit_2_and_untouched(copy: Path, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert convert("--model", copy, "-o", tmp_path / "out") == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_too_little_memory_is_exit_4_before_anything_starts(copy: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "available_mib", lambda: 100)
    code, text = refused(capsys, tmp_path)
    assert code == 4
    assert "100 are available" in text
    assert "--components" in text
    said, error = text.splitlines()
    assert said.startswith("estimated: MiB of memory at most") and error.startswith("error: ")
    (unet,) = re.findall(r" unet (\d+),", said)
    assert f" {unet} MiB" in error or "checking the bundle" in error


def test_a_component_alone_is_checked_beside_the_whole_model(copy: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "available_mib", lambda: 560)
    code, text = refused(capsys, tmp_path, "--components", "vae_decoder")
    assert code == 4
    assert "checking the bundle takes about" in text


def test_what_a_control_group_uses_is_not_available(tmp_path: Path, monkeypatch):
    """The tightest of the groups around this process counts; pages of files that nobody uses make room."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("1:name=systemd:/\n0::/outer/inner\n")
    monkeypatch.setattr(estimate, "CGROUPS", tmp_path)
    monkeypatch.setattr(estimate, "OWN_CGROUP", tmp_path / "own")
    whole = estimate.available_mib()
    assert whole > 64
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text(f"{30 << 20}\n")
    assert estimate.available_mib() > 64
    (inner.parent / "memory.max").write_text(f"{64 << 20}\n")
    (inner.parent / "memory.current").write_text(f"{40 << 20}\n")
    assert estimate.available_mib() == 24
    (inner.parent / "memory.stat").write_text(f"anon 1\ninactive_file {10 << 20}\n")
    assert estimate.available_mib() == 34
    (inner / "memory.max").write_text(f"{20 << 20}\n")
    assert estimate.available_mib() == 0


def test_too_little_disk_is_exit_4_before_anything_starts(copy: Path, tmp_path: Path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    code, text = refused(capsys, tmp_path)
    assert code == 4
    assert "1 MiB free" in text


def test_what_is_written_for_a_while_takes_disk_too(tiny_checkpoint: Path):
    """The fp32 graph beside the bundle, onnxruntime's copy of it and the recorded calls among temporary files."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    plain, int8 = ({"unet": None}, {"unet": Static()})
    needed = [estimate.estimate(checkpoint, plain), *(estimate.estimate(checkpoint, int8, n) for n in (0, 1000))]
    assert [each.beside_mib for each in needed] == [0, 1, 1]
    assert needed[0].temporary_mib == 0 and needed[1].temporary_mib == 1
    seen = 4 * 2 * (16 * 8 * 8 + 77 * 32) + 4 + 2 * 77 + 2 * 16 * 8 * 8 + 3 * 64 * 64
    assert needed[2].temporary_mib == 1 + math.ceil(1000 * 4 * seen / 2**20)


def test_a_disk_that_fills_up_is_exit_4(copy: Path, tmp_path: Path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "in_own_process", full)
    code, text = refused(capsys, tmp_path)
    assert code == 4
    assert "disk is full" in text


def test_below_its_floor_is_exit_1_with_both_numbers(copy: Path, tmp_path: Path, capsys, monkeypatch, in_this_process):
    monkeypatch.setattr(onnx, "floor_db", lambda _: 190.0)
    code, text = refused(capsys, tmp_path, "--components", "vae_decoder")
    assert code == 1
    assert "vae_decoder" in text
    assert "floor 190" in text


def test_what_failed_can_be_kept_for_study(copy: Path, tmp_path: Path, capsys, monkeypatch, in_this_process):
    monkeypatch.setattr(onnx, "floor_db", lambda _: 190.0)
    arguments = ("--model", copy, "-o", tmp_path / "out", "--components", "vae_decoder")
    assert convert(*arguments, "--keep-failed") == 1
    assert "out.failed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not Bundle.open(tmp_path / "out.failed").report["parity"]["vae_decoder"]["passed"]


def test_drift_can_be_accepted_and_is_on_record(copy: Path, tmp_path: Path, monkeypatch, in_this_process):
    monkeypatch.setattr(onnx, "floor_db", lambda _: 190.0)
    assert convert("--model", copy, "-o", tmp_path / "out", "--components", "vae_decoder", "--allow-drift") == 0
    assert not Bundle.open(tmp_path / "out").report["parity"]["vae_decoder"]["passed"]


def prompts(folder: Path, data: bytes) -> Path:
    (folder / "model" / "prompts.txt").write_bytes(data)
    return folder / "model" / "prompts.txt"


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights"])
def test_whole_numbers_want_prompts_to_calibrate_on(precision: str, copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, "--precision", precision)
    assert code == 2
    assert "--calibration FILE" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--components"], "--components names none"),
        (["--exclude", "*.conv_in.weight"], "--exclude keeps layers at more bits"),
        (["--exclude", "Conv", "--precision", "fp16"], "with --precision fp16 all have them"),
        (["--calibration", "missing.txt"], "--calibration is for whole-number precisions"),
        (
            ["--precision", "int8", "--calibration", "prompts.txt", "--calibration-prompts", "0"],
            "one at least is drawn",
        ),
        (["--steps", "2000"], "must be between 1 and 1000"),
        (["--sampler", "lcm", "--steps", "100"], "lcm takes at most 50"),
        (["--guidance", "inf"], "at least 1 and at least 0"),
    ],
)
def test_what_cannot_be_meant_is_exit_2(arguments: list[str], says: str, copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *arguments)
    assert code == 2
    assert says in text


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("conv_inn.weight", "; did you mean 'conv_in.weight'?"),
        ("MatMull", "fits no layer of unet; operators are Conv, MatMul; did you mean 'MatMul'?"),
        ("Gather", "--exclude Gather fits no layer of unet"),
        ("mid_block.*", "--exclude mid_block.* fits no layer of unet"),
    ],
)
def test_a_pattern_that_fits_no_layer_is_exit_2(
    pattern: str, says: str, copy: Path, tmp_path: Path, capsys, in_this_process
):
    settings = ("--precision", "int8", "--calibration", prompts(tmp_path, b"red apple"), "--components", "unet")
    code, text = refused(capsys, tmp_path, *settings, "--exclude", "conv_out.*", "down_blocks.*", pattern)
    assert code == 2
    assert says in text


@pytest.mark.parametrize(
    ("data", "says"), [(b"\n \n", "has no prompt"), (b"\xff\xfe", "UTF-8"), (None, "No such file")]
)
def test_bad_calibration_prompts_are_exit_2(data: bytes | None, says: str, copy: Path, tmp_path: Path, capsys):
    path = tmp_path / "nothing" if data is None else prompts(tmp_path, data)
    code, text = refused(capsys, tmp_path, "--precision", "int8", "--calibration", path)
    assert code == 2
    assert says in text


@pytest.mark.parametrize("arguments", [("--precision", "mixed"), ("--budget-mib", "3")])
def test_mixed_precision_and_its_budget_go_together(arguments: tuple[str, ...], copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *arguments)
    assert code == 2
    assert "go together" in text


@pytest.mark.parametrize("arguments", [(), ("--precision", "fp16"), ("--precision", "int8", "--no-spare")])
def test_a_budget_of_time_is_for_int8_that_is_measured(arguments, copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *arguments, "--budget-ms", "5")
    assert code == 2
    assert "--budget-ms is for --precision int8, without --no-spare" in text


@pytest.mark.parametrize(
    "budget", [("--precision", "mixed", "--budget-mib", "3"), ("--precision", "int8", "--budget-ms", "3")]
)
def test_a_budget_without_its_network_is_exit_2(budget: tuple[str, ...], copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *budget, "--components", "vae_decoder")
    assert code == 2
    assert "are the U-Net's, which --components leaves out" in text


def test_a_budget_below_four_bits_says_what_they_take(copy: Path, tmp_path: Path, capsys, in_this_process):
    path = prompts(tmp_path, b"red apple")
    settings = ("--precision", "mixed", "--budget-mib", "0.01", "--calibration", path, "--components", "unet")
    code, text = refused(capsys, tmp_path, *settings, "--steps", "1")
    assert code == 2
    assert "at 4 bits they take" in text


def test_some_components_alone_are_checked_too(copy: Path, tmp_path: Path, capsys, in_this_process):
    assert convert("--model", copy, "-o", tmp_path / "out", "--components", "vae_decoder", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["parity"]) == {"vae_decoder"}
    assert result["picture"] == "not measured"


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(copy: Path, tmp_path: Path, capsys):
    assert convert("--model", copy, "-o", tmp_path / "out", "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["estimate"]["by"] == "estimated"
    assert result["estimate"]["memory_mib"]["unet"] >= 500
    assert not (tmp_path / "out").exists()


def test_force_replaces_bundles_and_never_a_checkpoint(copy: Path, tmp_path: Path, capsys):
    other = shutil.copytree(copy, tmp_path / "other")
    assert convert("--model", copy, "-o", other, "--force") == 2
    assert "has no manifest.json, so --force leaves it alone" in capsys.readouterr().err
    assert (other / "unet" / "config.json").exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("model", "is "),
        ("model/out", "is inside "),
        ("out/../model/unet", "is inside "),
        (".", "is around "),
        ("link", "is "),
        ("new", "new.failed is "),
    ],
)
def test_the_checkpoint_is_never_written_to(output: str, says: str, copy: Path, tmp_path: Path, capsys):
    (tmp_path / "link").symlink_to(copy)
    model = copy.rename(tmp_path / "new.failed") if output == "new" else copy
    before = sorted(tmp_path.rglob("*"))
    assert convert("--model", model, "-o", tmp_path / output, "--force", "--keep-failed", "--dry-run") == 2
    assert f"{says}{model}, which is only read" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("in_this_process")
def test_a_network_of_nan_is_exit_1_and_never_written(copy: Path, tmp_path: Path, capsys):
    weights = load_file(copy / WEIGHTS)
    weights["conv_out.weight"][...] = np.nan
    save_file(weights, copy / WEIGHTS)
    assert convert("--model", copy, "-o", tmp_path / "out", "--allow-drift", "--keep-failed") == 1
    message = capsys.readouterr().err
    assert "NaN" in message or "not finite" in message
    assert not (tmp_path / "out").exists() and (tmp_path / "out.failed").is_dir()


def test_a_kill_leaves_no_half_bundle(copy: Path, tmp_path: Path):
    command = [sys.executable, "-m", "convert.onnx", "--model", copy, "-o", tmp_path / "out"]
    running = subprocess.Popen([str(word) for word in command], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/tokenizer/vocab.json")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.wait()
    assert not (tmp_path / "out").exists()
    while list(tmp_path.iterdir()) != [copy]:  # until its own children have ended, too, and let go of the lock
        assert time.monotonic() < deadline
        with contextlib.suppress(ZeroDivisionError), replace_dir(tmp_path / "out", force=False):
            raise ZeroDivisionError  # the next writer, whatever becomes of it, clears up
