import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from kdc_edge import cli, doctor, machine, stages
from kdc_edge.bundle import Bundle

ROOT = Path(__file__).parents[2]
LEAN = """
import sys
from kdc_edge.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "diffusers", "transformers", "onnx", "scipy"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """The user's."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "kdc-edge"


def call(*argv):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in argv])
    return caught.value.code


def result(capsys):
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def child(*argv):
    return subprocess.run(
        [sys.executable, "-c", LEAN, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_generate_needs_no_torch(hand_bundle, tmp_path):
    done = child("generate", "red apple", "--bundle", str(hand_bundle), "-o", str(tmp_path / "a.png"), "--json")
    assert done.returncode == 0 and "heavy: []" in done.stderr, done.stderr
    data = json.loads(done.stdout.splitlines()[-1])
    with Image.open(tmp_path / "a.png") as image:
        assert hashlib.sha256(image.tobytes()).hexdigest() == data["pictures"][0]["sha256"]
    assert data["bundle"] == Bundle.open(hand_bundle).id
    assert {name: len(calls) for name, calls in data["seconds"]["calls"].items()} == {
        "text_encoder": 1, "unet": 4, "vae_decoder": 1,
    }  # fmt: skip


def test_bytes_that_are_not_utf8(hand_bundle, tmp_path):
    command = [sys.executable, "-m", "kdc_edge", "generate", b"red \xff", "--bundle", str(hand_bundle)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 2 and b"not UTF-8 at character 4" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_several_prompts_are_numbered(hand_bundle, tmp_path, capsys):
    output = tmp_path / "deep" / "out.png"
    assert call("generate", "red", "heart", "--bundle", hand_bundle, "-o", output, "--seed", 5, "--json") == 0
    data, _ = result(capsys)
    assert data["files"] == [str(tmp_path / "deep" / f"out-{i}.png") for i in (1, 2)]
    assert [picture["seed"] for picture in data["pictures"]] == [5, 6]
    assert call("generate", "heart", "--bundle", hand_bundle, "-o", output, "--seed", 6, "--json") == 0
    assert result(capsys)[0]["pictures"][0]["sha256"] == data["pictures"][1]["sha256"]


def test_the_second_start_reads_what_the_first_compiled(hand_bundle, tmp_path, capsys, cache):
    drawn, kept = [], []
    for name in ("first.png", "second.png"):
        assert call("generate", "red", "--bundle", hand_bundle, "-o", tmp_path / name, "--json") == 0
        drawn.append(result(capsys)[0]["pictures"])
        kept.append({path: path.stat().st_mtime_ns for path in cache.rglob("model.onnx")})
    assert drawn[0] == drawn[1] and kept[0] == kept[1] and len(kept[0]) == 3


def test_no_cache_is_no_reason_to_stop(hand_bundle, tmp_path, cache):
    cache.write_text("no folder")
    assert call("generate", "red", "--bundle", hand_bundle, "-o", tmp_path / "x.png") == 0


def test_a_contact_sheet(hand_bundle, tmp_path, capsys):
    sheet = tmp_path / "sheet.webp"
    assert (
        call("generate", "red", "", "👍🏽", "--bundle", hand_bundle, "-o", sheet, "--sheet", "--runtime", "fake") == 0
    )
    with Image.open(sheet) as image:
        assert image.width > 256


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--steps", 0], 2, "steps is 0, must be between"),
        (["--sampler", "eular"], 2, "did you mean 'euler'"),
        (["--guidance", -1], 2, "guidance is -1"),
        (["--threads", 0], 2, "threads is 0"),
        (["--runtime", "otr"], 2, "did you mean 'ort'"),
        (["--provider", "qnn"], 3, "has no QNNExecutionProvider"),
        (["-o", "x.pgn"], 2, "cannot write pictures of type '.pgn'; use .png, .jpg or .webp"),
        (["-o", "x"], 2, "cannot write pictures of type ''"),
        (["--bundle", "/nonexistent"], 5, "no such folder"),
    ],
)
def test_bad_values(hand_bundle, tmp_path, monkeypatch, capsys, argv, code, message):
    monkeypatch.chdir(tmp_path)
    argv = argv if "--bundle" in argv else ["--bundle", hand_bundle, *argv]
    assert call("generate", "red", *argv) == code
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_no_prompt(capsys):
    assert call("generate") == 2
    assert "no prompt" in capsys.readouterr().err


def test_a_flat_picture_fails_the_gate(hand_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdc_edge.pipeline.to_image", lambda sample: Image.new("RGB", (64, 64)))
    assert call("generate", "red", "--bundle", hand_bundle, "-o", tmp_path / "x.png") == 1
    assert "the picture is flat" in capsys.readouterr().err


def test_a_full_disk(hand_bundle, tmp_path, monkeypatch, capsys):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert call("generate", "red", "--bundle", hand_bundle, "-o", tmp_path / "x.png") == 4
    assert "the disk is full" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_inspect_and_verify(hand_bundle, tiny_checkpoint, capsys):
    assert call("inspect", hand_bundle, "--json") == 0
    data, err = result(capsys)
    assert data["kind"] == "bundle" and data["components"]["unet"]["macs"] == "not measured" and data["id"] in err
    assert call("inspect", tiny_checkpoint, "--json") == 0
    data, err = result(capsys)
    unet = data["components"]["unet"]
    assert data["kind"] == "checkpoint" and unet["dtypes"] == ["F16"] and f"{unet['parameters']:,}" in err
    with safe_open(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors", "np") as weights:
        assert unet["parameters"] == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    for path in (hand_bundle, tiny_checkpoint):
        assert call("verify", path) == 0
        assert "is whole" in capsys.readouterr().err


def test_verify_sees_damage(bundle_copy, tmp_path, capsys):
    with (bundle_copy / "unet" / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert call("verify", bundle_copy, "--json") == 5
    data, _ = result(capsys)
    assert data["kind"] == "BundleError" and "model.onnx" in data["error"]
    assert call("verify", tmp_path) == 5
    assert "neither a bundle" in capsys.readouterr().err


def test_doctor(capsys):
    assert call("doctor", "--json") == 0
    data, _ = result(capsys)
    assert data["machine"]["cores"] >= 1
    assert not {package["extra"] for package in data["packages"]} & {"dev", ""}


def test_doctor_says_what_is_tested(monkeypatch, tmp_path):
    requirements = ["numpy<2.4,>=1.24", 'No_Such.Thing>=1; extra == "ort"', 'pytest; extra == "dev"']
    (tmp_path / "constraints.txt").write_text("# pins\nnumpy==0.0.1\nno-such-thing==1.0\n")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor, "CONSTRAINTS", (tmp_path / "none", tmp_path / "constraints.txt"))
    numpy, absent = doctor.packages()
    assert (numpy.name, numpy.extra, numpy.tested, numpy.state) == ("numpy", "core", "0.0.1", "untested version")
    assert (absent.name, absent.extra, absent.installed, absent.state) == (
        "no-such-thing",
        "ort",
        None,
        "not installed",
    )
    monkeypatch.setattr(doctor, "CONSTRAINTS", ())
    assert doctor.packages()[0].state == "no tested version"


def test_doctor_knows_what_else_brings_a_module(monkeypatch):
    here = {"onnxruntime-gpu": "1.2.3"}

    def version(name):
        if name not in here:
            raise machine.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(machine, "version", version)
    requirements = ['onnxruntime>=1.18; extra == "ort"', 'openvino>=2025; extra == "openvino"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor, "_tested", lambda: iter([("onnxruntime", "1.2.3")]))
    openvino, ort = doctor.packages()
    assert (ort.installed, ort.by, ort.state) == ("1.2.3", "onnxruntime-gpu", "as tested, as onnxruntime-gpu")
    assert openvino.state == "not installed"
    here["onnxruntime"] = "1.2.2"
    assert doctor.packages()[1].state == "untested version"
    here.clear()
    assert doctor.packages()[1].state.startswith("not installed, nor onnxruntime-gpu, onnxruntime-openvino, ")


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A package `convert` with one command, `echo`, and one module that is none."""
    folder = tmp_path / "convert"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text("x = 1\n")
    (folder / "echo.py").write_text('import sys\nif __name__ == "__main__":\n    sys.exit(int(sys.argv[1]))\n')
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: _Spec([str(folder)]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


class _Spec:
    def __init__(self, locations):
        self.submodule_search_locations = locations


@pytest.mark.parametrize("code", [0, 1, 5])
def test_stages_run_in_a_child_and_hand_its_code_on(stage, code):
    assert call("convert", "echo", code) == code


@pytest.mark.parametrize("name", ["ehco", "helper", ""])
def test_stages_know_their_commands(stage, capsys, name):
    assert call("convert", *filter(None, [name])) == 2
    assert "there are echo" in capsys.readouterr().err


def test_a_stage_with_a_command_of_its_own(stage, tmp_path):
    (tmp_path / "convert" / "__main__.py").write_text("import sys\nsys.exit(int(sys.argv[1]) + 1)\n")
    assert call("convert", 2) == 3


def test_a_stage_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: None)
    assert call("train", "teacher") == 3
    assert "train is not installed; pip install 'kdc-edge[train]'" in capsys.readouterr().err
