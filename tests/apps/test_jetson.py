"""docs/jetson.md, run line by line, and apps/jetson/setup.sh: installing by fakes that check their arguments, TensorRT and
a GPU by fakes that execute, kdc-edge and bench for real."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from bench import record

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "apps" / "jetson" / "setup.sh"
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8"), re.DOTALL)
REAL = f'exec {sys.executable} "$@"'
FAKES = {
    "sudo": 'exec "$@"',
    "nvpmodel": '[ "$1" = -q ] && echo "NV Power Mode: MAXN_SUPER" || [ "$1 $2" = "-m 0" ]',
    "jetson_clocks": "true",
    "git": f'[ "$1 $2" = "clone $KDC_EDGE" ] && mkdir -p "$3/apps/jetson" && cp {SETUP} "$3/apps/jetson/"',
    "python3": 'if [ "$1 $2 $3" = "-m venv --system-site-packages" ]; then mkdir -p "$4" && cp -r "$HOME/bin" "$4/bin"; '
    f"else {REAL}; fi",
    "pip": 'printf "%s\\n" "$@" > "$HOME/pip"',
    "python": REAL,
    "kdc-edge": f'exec {sys.executable} -m kdc_edge "$@"',
    "activate": "",
}
JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 1"
TENSORRT = """
import sys
from cuda.bindings.runtime import CUDA
from tests.kdc_edge.fake_tensorrt import fake
sys.modules[__name__] = fake("{version}", cuda=CUDA)[0]
"""
RUNTIME = """
import sys
from tests.kdc_edge.fake_cuda import Cuda
CUDA = Cuda()
CUDA.CUDA = CUDA
sys.modules[__name__] = CUDA
"""


def jetson(
    folder: Path, version: str = "10.3.0", release: str = "# R36 (release), REVISION: 4.3, GCID: 1"
) -> dict[str, str]:
    """The environment of a home folder with fakes first in its path."""
    for name, body in FAKES.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    site = folder / "site"
    (site / "cuda" / "bindings").mkdir(parents=True)
    for package in ("cuda", "cuda/bindings"):
        (site / package / "__init__.py").write_text("")
    (site / "cuda" / "bindings" / "runtime.py").write_text(RUNTIME)
    (site / "tensorrt.py").write_text(TENSORRT.format(version=version))
    (folder / "release").write_text(release + "\n")
    (folder / "meminfo").write_text("MemAvailable: 6000000 kB\nSwapFree: 8000000 kB\n")
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "KDC_EDGE": "somewhere",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{site}:{ROOT}", "TEGRA_RELEASE": str(folder / "release"), "MEMINFO": str(folder / "meminfo"),
    }  # fmt: skip


def shell(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -eu\n{script}"], cwd=env["HOME"], env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def ran(tiny_trt_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 2 and 3 in an empty home, the soak shortened to a second, few samples; the home."""
    env = jetson(tmp_path_factory.mktemp("jetson"))
    script = "".join(BLOCKS[1:3]).replace("--soak 10m", "--soak 1s --samples 3")
    done = shell(script, env | {"BUNDLE": str(tiny_trt_bundle)})
    assert done.returncode == 0, done.stderr
    assert "L4T 36.4.3, JetPack 6" in done.stdout and "10.3.0" in done.stdout and "MAXN_SUPER" in done.stdout
    return Path(env["HOME"])


@pytest.mark.slow
def test_it_ends_with_a_picture_a_record_and_a_page(ran: Path):
    clone = ran / "kdc-edge"
    (path,) = (clone / "runs" / "jetson").glob("2*.json")
    found = record.read(path)
    assert found.complete and found.settings.runtime == "tensorrt" and found.settings.power_mode is not None
    assert found.placement["unet"].keys() == {"tensorrt"}
    assert {row.precision for row in found.layers["unet"]} == {"Half"}
    assert (clone / "apple.png").exists()
    assert "Jetson Orin Nano" in (clone / "runs" / "jetson.html").read_text(encoding="utf-8")
    assert len(list((ran / ".cache" / "kdc-edge" / "engines").glob("*.engine"))) == 3


@pytest.mark.slow
def test_what_it_installs_exists_and_brings_no_torch(ran: Path):
    *_, what = (ran / "pip").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = re.search(r"\[(.*)\]", what).group(1).split(",")
    assert set(extras) <= set(project)
    assert not [name for extra in extras for name in project[extra] if name.startswith(("torch", "tensorrt"))]


def test_a_dry_run_runs_nothing_and_says_all(tiny_trt_bundle: Path, tmp_path: Path):
    done = shell(f"{SETUP} --dry-run {tiny_trt_bundle} --workspace-mib 512", jetson(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("+")] == [
        *([] if (ROOT / ".venv").exists() else [f"+ python3 -m venv --system-site-packages {ROOT}/.venv"]),
        f"+ {ROOT}/.venv/bin/pip install -q {ROOT}[tensorrt,bench]",
        f"+ {ROOT}/.venv/bin/kdc-edge build {tiny_trt_bundle} --workspace-mib 512",
    ]
    assert not (tmp_path / "pip").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"TEGRA_RELEASE": "absent"}, "this is no Jetson"),
        ({"release": "# R35 (release), REVISION: 4.1"}, "L4T 35.4.1; JetPack 6 or 7 is wanted"),
        ({"version": "8.5.2"}, "8.5.2; 10.3 or later is wanted"),
        ({"bundle": "absent"}, "absent is no TensorRT bundle"),
        ({"meminfo": "MemAvailable: 90000 kB"}, "87 MiB with swap, a build takes about"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(
    change: dict[str, str], said: str, tiny_trt_bundle: Path, tmp_path: Path
):
    env = jetson(tmp_path, **{key: value for key, value in change.items() if key in ("release", "version")})
    if "meminfo" in change:
        (tmp_path / "meminfo").write_text(change["meminfo"] + "\n")
    env |= {key: value for key, value in change.items() if key == "TEGRA_RELEASE"}
    for flag, code in (("", 3), ("--dry-run", 0)):
        done = shell(f"{SETUP} {flag} {change.get('bundle', tiny_trt_bundle)}", env)
        assert (done.returncode, said in done.stderr) == (code, True)


def test_without_a_bundle_it_is_misused(tmp_path: Path):
    done = shell(str(SETUP), jetson(tmp_path))
    assert (done.returncode, "apps/jetson/setup.sh [--dry-run] BUNDLE" in done.stderr) == (2, True)
