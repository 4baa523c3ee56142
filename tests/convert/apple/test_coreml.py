"""The converter's command: what it refuses and with which exit code, what it tells before it starts, what it writes."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert import coreml
from convert.apple import layout, sizes, versions
from convert.apple.schemes import PRECISIONS
from convert.coreml import main
from convert.parity import psnr_db
from kdc_edge import Bundle, Checkpoint, Pipeline, cli
from kdc_edge.runtimes.apple import PACKAGES, RESOURCES
from kdc_edge.torch_ref.runtime import open_pipeline


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a conversion that must leave only `model` and plans in `folder`."""
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in ("--model", folder / "model", "-o", folder / "out", *arguments)])
    assert not [path for path in folder.iterdir() if path.name not in ("model", "plan.json")]
    return done.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "ios15"), "ios15"),
        (("--target", "ios17", "--precision", "palette3"), "3 bits is read from ios18 on, not by ios17"),
        (("--target", "ios16", "--precision", "int4"), "4-bit integer is read from ios18 on"),
        (("--precision", "palette5"), "palette5"),
        (("--precision", "mixed"), "go together"),
        (("--budget-mib", "3"), "go together"),
        (("--precision", "mixed", "--budget-mib", "3"), "--calibration FILE"),
        (("--precision", "int8"), "--calibration FILE"),
        (("--resolutions", "64x96"), "ios18 reads and ios17 does not"),
        (("--target", "ios18", "--resolutions", "64by96"), "must be HEIGHTxWIDTH"),
        (("--target", "ios18", "--resolutions", "64x70"), "multiples of 64"),
        (("--target", "ios18", "--resolutions", "64x128", "--chunk"), "do not go together"),
        (("--plan", "nothing.json"), "no such file"),
        (("--plan", "x.json", "--precision", "fp16"), "leave --precision out"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_exit_2(arguments: tuple[str, ...], says: str, copy: Path, tmp_path: Path, capsys):
    code, text = refused(capsys, tmp_path, *arguments)
    assert code == 2
    assert says in text
    assert "Traceback" not in text


@pytest.mark.parametrize(("package", "version"), [("numpy", "2.4.1"), ("torch", "2.20.0+cpu"), ("coremltools", "8.3")])
def test_versions_that_were_not_tested_are_exit_3(
    package: str, version: str, copy: Path, tmp_path: Path, capsys, monkeypatch
):
    known = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: version if name == package else known(name))
    code, text = refused(capsys, tmp_path)
    assert code == 3
    assert f"{package} is {version}" in text
    assert "pip install" in text


def test_a_tool_that_is_missing_is_exit_3(copy: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(coreml, "TOOLS", ("coremltoolz",))
    code, text = refused(capsys, tmp_path)
    assert code == 3
    assert "kdc-edge[coreml]" in text


def test_a_disk_that_fills_up_is_exit_4(copy: Path, tmp_path: Path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(coreml, "in_own_process", full)
    code, text = refused(capsys, tmp_path)
    assert code == 4
    assert "disk is full" in text


def test_weights_that_are_cut_off_are_exit_5(copy: Path, tmp_path: Path, capsys):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refused(capsys, tmp_path)[0] == 5


def test_a_budget_has_no_floor_but_what_stands_beside_it_has(copy: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple")
    mixed = {"precision": "mixed", "budget_mib": 0.2, "calibration": prompts}
    job = coreml.plan(coreml.CoremlConfig(copy, tmp_path / "out", **mixed))
    assert [job.floor_db(name) for name in job.plans] == [33, 0, 33]


def test_a_dry_run_tells_sizes_and_memory_and_writes_nothing(copy: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["--model", str(copy), "-o", str(tmp_path / "out"), "--precision", "palette4", "--dry-run", "--json"])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["packages"]["unet"]["by"] == "estimated"
    assert told["estimate"]["memory_mib"]["unet"] > 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("component", PACKAGES)
def test_the_predicted_weight_file_is_the_one_that_is_written(component: str, packages: Path, tiny_checkpoint: Path):
    predicted = sizes.weight_bytes(Checkpoint.open(tiny_checkpoint), component, PRECISIONS["fp16"][component], 16)
    written = packages / f"{PACKAGES[component].title}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    tensors = len(list(sizes.tensors(Checkpoint.open(tiny_checkpoint), component)))
    constants = 2 * 77 * 77 + 2048  # the text encoder's mask
    assert abs(written.stat().st_size - predicted) < 128 * tensors + constants  # a tensor has a header and is aligned


def test_the_compile_script_is_a_shell_script_for_a_mac(tmp_path: Path):
    for name in ("tokenizer", "Resources"):
        (tmp_path / name).mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_text(name)
    layout.write_resources(tmp_path)
    script = tmp_path / "compile.sh"
    assert script.stat().st_mode & 0o100
    assert subprocess.run(["sh", "-n", script], check=True).returncode == 0
    done = subprocess.run([script, tmp_path / "out"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    if shutil.which("xcrun") is None:
        assert done.returncode == 3
        assert "install Xcode" in done.stderr
    assert (tmp_path / "Resources" / "vocab.json").read_text() == "vocab.json"


def test_a_bundle_is_apples_layout_and_a_bundle_like_any_other(coreml_bundle: Path, tiny_checkpoint: Path):
    bundle = Bundle.open(coreml_bundle)
    found = {path.parts[1] for path in map(Path, bundle.manifest.files) if path.parts[0] == RESOURCES}
    assert found == {*(f"{package.title}.mlpackage" for package in PACKAGES.values()), "vocab.json", "merges.txt"}
    assert bundle.manifest.provenance.checkpoint == Checkpoint.open(tiny_checkpoint).id
    assert bundle.manifest.requires.os == "iOS 17 or macOS 14"
    assert "--runtime coreml" in (coreml_bundle / "README.md").read_text()


def test_the_report_says_how_it_was_checked_and_what_was_met(coreml_bundle: Path):
    report = Bundle.open(coreml_bundle).report
    assert report["checked"] in coreml.HOW.values()
    assert report["parity"].keys() == PACKAGES.keys()
    for name, parity in report["parity"].items():
        assert parity["snr_db"] >= parity["floor_db"] == 50
        took = report["conversion"][name]
        assert took["islands"] == []
        assert 0 < took["overflow"]["most"] < 65504
        assert abs(took["weight_bytes"] - took["estimated_weight_bytes"]) < 0.5 * took["weight_bytes"]
    assert min(report["picture"]["psnr_db"]) > 40
    advice = report["conversion"]["text_encoder"]["advice"]
    assert any("looks up by index" in line["says"] and line["source"] for line in advice)


def test_a_picture_through_mil_is_pytorchs(coreml_bundle: Path, tiny_checkpoint: Path):
    """End to end, guidance included: two rows asked of packages of one."""
    with Pipeline.open(coreml_bundle, "mil") as pipe:
        ours = np.asarray(pipe.generate("red apple", seed=3, steps=3, guidance=3.0))
    with open_pipeline(Checkpoint.open(tiny_checkpoint)) as pipe:
        wanted = np.asarray(pipe.generate("red apple", seed=3, steps=3, guidance=3.0))
    assert wanted.std() > 1
    assert psnr_db(wanted, ours) > 40


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac Core ML predicts")
@pytest.mark.parametrize("command", [("generate", "red apple", "--steps", "1", "--bundle"), ("conformance",)], ids=str)
def test_where_core_ml_cannot_be_had_mil_runs_and_says_so(
    command: tuple[str, ...], coreml_bundle: Path, tmp_path: Path, capsys
):
    with pytest.raises(SystemExit) as done:
        cli.main([*command, str(coreml_bundle), "-o", str(tmp_path / "out.png")])
    assert done.value.code == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("runtime ")]
    assert len(told) == 1 and told[0].startswith("runtime mil: Core ML predicts on macOS, this is ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "db"), {"fp16": 50, "int8": 30, "mixed": 30, "palette6": 25, "palette4": 15}.items()
)
def test_the_shipped_four_step_model_in_every_precision(precision: str, db: float, tmp_path: Path, capsys):
    assets = Path(__file__).parents[3] / "assets" / "emoji-64"
    measured = ["--calibration", str(assets / "calibration.txt")] if precision in ("int8", "mixed") else []
    budget = ["--budget-mib", "6"] if precision == "mixed" else []
    with pytest.raises(SystemExit) as done:
        output = ["-o", str(tmp_path / "out"), "--precision", precision, "--json"]
        main(["--model", str(assets / "fewstep"), *output, *measured, *budget])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert min(told["picture"]["psnr_db"]) > db
