"""Shared fixtures: tiny checkpoints and the bundles converted from them, made once for all workers of a run. Read-only."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

ROOT = Path(__file__).resolve().parent.parent
Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`shared(name, make)`: a folder that the first worker to ask for it makes by `make(folder)`."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def share(name: str, make: Callable[[Path], object]) -> Path:
        from filelock import FileLock

        folder, unfinished = root / "shared" / name, root / "making" / name
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                unfinished.parent.mkdir(exist_ok=True)
                make(unfinished)
                folder.parent.mkdir(exist_ok=True)
                unfinished.rename(folder)
        return folder

    return share


@pytest.fixture(scope="session")
def tiny_checkpoint(shared: Shared) -> Path:
    """The emoji-64 shape: AutoencoderTiny, 16 latent channels, v-prediction, fp16 weights."""
    from tests import tiny

    return shared("tiny", tiny.emoji_checkpoint)


@pytest.fixture(scope="session")
def tiny_sd_checkpoint(shared: Shared) -> Path:
    """The Stable Diffusion 1.x shape: AutoencoderKL, 4 latent channels, epsilon, fp32 weights."""
    from tests import tiny

    return shared("tiny-sd", tiny.sd_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(shared: Shared, tiny_checkpoint: Path) -> Path:
    """`tiny_checkpoint` as an fp32 ONNX bundle, by the command line."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "convert.onnx", "--model", str(tiny_checkpoint), "-o", str(folder)]
        subprocess.run(command, check=True, cwd=ROOT, timeout=300)

    return shared("tiny-onnx", make)


@pytest.fixture(scope="session")
def tiny_sd_bundle(shared: Shared, tiny_sd_checkpoint: Path) -> Path:
    """`tiny_sd_checkpoint` as an fp16 ONNX bundle, all in this process: one import of torch instead of four."""

    def make(folder: Path) -> None:
        from convert import checks, onnx

        with pytest.MonkeyPatch.context() as patch:
            for module in (onnx, checks):
                patch.setattr(module, "in_own_process", lambda _, fn, *args, **kwargs: fn(*args, **kwargs))
            onnx.convert(onnx.OnnxConfig(tiny_sd_checkpoint, folder, precision="fp16"))

    return shared("tiny-sd-onnx", make)


@pytest.fixture(scope="session")
def tiny_trt_bundle(shared: Shared, tiny_checkpoint: Path) -> Path:
    """`tiny_checkpoint` as an fp16 TensorRT bundle of two steps, by the command line but in this process."""

    def make(folder: Path) -> None:
        from convert import checks, tensorrt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            for module in (tensorrt, checks):
                patch.setattr(module, "in_own_process", lambda _, fn, *args, **kwargs: fn(*args, **kwargs))
            tensorrt.main(["--model", str(tiny_checkpoint), "--steps", "2", "-o", str(folder)])
        assert ended.value.code == 0

    return shared("tiny-tensorrt", make)


@pytest.fixture(scope="session")
def tiny_clip(shared: Shared) -> Path:
    """A CLIP folder of 32 pixels and 16 dimensions."""
    from tests import tiny

    return shared("tiny-clip", tiny.clip)


@pytest.fixture(scope="session")
def tiny_gallery(shared: Shared) -> Path:
    """Twenty-four real emoji as an `imagefolder`: sixteen without skin tone, eight with, two of them set apart."""
    import json

    from kdc_edge.gallery import METADATA, reading, rows_of

    data = ROOT / "assets" / "emoji-64.tar"

    def make(folder: Path) -> None:
        rows = rows_of(data)
        toned = [row for row in rows if row.base == "waving hand" and row.tone]
        toned += [row for row in rows if row.base == "raised hand" and row.tone][:3]
        chosen = [row for row in rows if not row.tone][:160:10] + toned
        folder.mkdir()
        with reading(data) as read, (folder / METADATA).open("w", encoding="utf-8") as lines:
            for i, row in enumerate(chosen):
                (folder / row.file).write_bytes(read(row.file))
                split = "generalisation" if i in (17, 22) else "train"
                known = {"file_name": row.file, "text": row.text, "base": row.base, "tone": row.tone, "split": split}
                lines.write(json.dumps(known) + "\n")

    return shared("tiny-gallery", make)
