"""The app as a folder of static files: its own, the few it needs of npm packages, and one bundle's. Any host can serve it."""

import hashlib
import json
import shutil
from pathlib import Path

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.golden import SETTINGS, VECTORS

STATIC = Path(__file__).parent / "static"
MODULES = Path(__file__).parents[1] / "node_modules"
ORT, TOKENIZERS = "onnxruntime-web/dist", "@huggingface/tokenizers"
VENDOR = {
    "vendor/tokenizers.mjs": f"{TOKENIZERS}/dist/tokenizers.min.mjs",
    "vendor/LICENSE.tokenizers": f"{TOKENIZERS}/LICENSE",
    "vendor/ort/ort.wasm.min.mjs": f"{ORT}/ort.wasm.min.mjs",
    "vendor/ort/ort-wasm-simd-threaded.mjs": f"{ORT}/ort-wasm-simd-threaded.mjs",
    "vendor/ort/ort-wasm-simd-threaded.wasm": f"{ORT}/ort-wasm-simd-threaded.wasm",
    "vendor/ort/ort.webgpu.min.mjs": f"{ORT}/ort.webgpu.min.mjs",
    "vendor/ort/ort-wasm-simd-threaded.asyncify.mjs": f"{ORT}/ort-wasm-simd-threaded.asyncify.mjs",
    "vendor/ort/ort-wasm-simd-threaded.asyncify.wasm": f"{ORT}/ort-wasm-simd-threaded.asyncify.wasm",
}
LATER = (
    "ort.webgpu.min.mjs",
    "asyncify.mjs",
    "asyncify.wasm",
    "LICENSE.tokenizers",
)  # cached once a page asks for them
WORKER, LISTED = "sw.js", "const VERSION = null, FILES = [];"
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


def build(bundle: Bundle, folder: Path, modules: Path = MODULES) -> None:
    """Write the site into an empty or absent folder."""
    served = files_of(bundle)
    for name in VENDOR.values():
        if not (modules / name).is_file():
            raise MissingBackend(
                f"{modules / name}: no such file; install the npm packages by `npm ci --prefix apps` in a checkout, or name "
                "another folder that holds them: --node-modules"
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; name another --output-dir, or remove it")
    shutil.copytree(STATIC, folder, dirs_exist_ok=True)
    for target, source in VENDOR.items():
        _copy(modules / source, folder / target)
    for name in served:
        _copy(bundle.path / name, folder / "bundle" / name)
    _list(folder)


def files_of(bundle: Bundle) -> list[str]:
    """What the app fetches of a bundle. BundleError for one that a browser cannot run."""
    manifest = bundle.manifest
    if manifest.runtime != "onnx":
        raise BundleError(
            f"{bundle.path} is a bundle for {manifest.runtime}; browsers run ONNX: python -m convert.onnx --target web"
        )
    graphs = [name for component in manifest.components.values() for name in component.files]
    names = [SETTINGS, VECTORS, *TOKENIZER, *graphs]
    if absent := [name for name in names if name not in manifest.files]:
        raise BundleError(f"{bundle.path} has no {absent[0]}, which the app needs; convert the model again")
    return ["manifest.json", *names]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _list(folder: Path) -> None:
    """Tell the service worker what to keep for offline use, and a version that changes with any of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    own = {name: digest for name, digest in names.items() if not name.startswith("bundle/")}
    version = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
    kept = [name for name in own if name != WORKER and not name.endswith(LATER)]
    worker = folder / WORKER
    text = worker.read_text(encoding="utf-8")
    if LISTED not in text:
        raise BundleError(f"{STATIC / WORKER}: lacks the line '{LISTED}'; install kdc-edge again")
    listed = f"const VERSION = {json.dumps(version)}, FILES = {json.dumps(kept)};"
    worker.write_text(text.replace(LISTED, listed), encoding="utf-8")
