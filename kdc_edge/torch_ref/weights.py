"""Published weights by path or from the hub, held against their SHA-256 before anything reads them."""

from pathlib import Path

import torch
from torch import Tensor

from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.files import sha256


def find(source: str) -> Path:
    """A local file, or `owner/repository/file` on the hub. Raises UsageError where it is neither."""
    path = Path(source)
    if path.is_file():
        return path
    parts = source.split("/", 2)
    if len(parts) < 3 or source.startswith((".", "/")):
        raise UsageError(f"{source}: no such file; give a path, or owner/repository/file on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingBackend(f"{source}: not a local file, and the hub does not give it ({error})") from error


def checked(source: str, wanted: str) -> tuple[Path, str]:
    """The file and its SHA-256, which must begin with `wanted`, at least eight digits. Raises BundleError."""
    if len(wanted) < 8:
        raise UsageError(f"a SHA-256 of {len(wanted)} digits says too little; give eight or more")
    path = find(source)
    seen = sha256(path)
    if not seen.startswith(wanted.lower()):
        raise BundleError(f"{path}: sha256 is {seen[:12]}…, wanted {wanted[:12]}…; these are other weights")
    return path, seen


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a PyTorch file read without running any code in it. Raises BundleError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and the libraries raise nothing narrower
        raise BundleError(f"{path}: not readable as weights ({error}); fetch it again") from error


def load(network: torch.nn.Module, state: dict[str, Tensor], where: object) -> torch.nn.Module:
    """`network` with every one of its tensors from `state`, frozen. Raises BundleError naming what does not fit."""
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise BundleError(f"{where}: weights of another network: {str(error).splitlines()[-1].strip()}") from error
    return network.eval().requires_grad_(False)
