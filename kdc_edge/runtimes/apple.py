"""What Apple's Swift package `StableDiffusion` reads: a package for each component, names and axes of its arrays; and the
way from this project's ports to them and back.

Source: github.com/apple/ml-stable-diffusion, swift/StableDiffusion/pipeline: ResourceURLs, TextEncoder, Unet, Decoder,
Encoder. Arrays are float32; those of a batch of 1 or 2 have it as a fixed axis.
"""

# B rows of a call, T text tokens, D text width

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError
from kdc_edge.ports import Axis, Port, Ports, check

RESOURCES = "Resources"
VOCABULARY = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class Package:
    """`title`.mlpackage and its ports, with what Xcode shows of each."""

    title: str
    chunks: tuple[str, ...]
    summary: str
    ports: Ports
    about: dict[str, str]


LATENT: tuple[Axis, ...] = ("batch", "channels", "height", "width")
PACKAGES: dict[str, Package] = {
    "text_encoder": Package(
        "TextEncoder",
        (),
        "Text to embedding (CLIP).",
        Ports(
            (Port("input_ids", "float32", (1, "tokens")),),
            (Port("last_hidden_state", "float32", (1, "tokens", "text_width")),
             Port("pooled_outputs", "float32", (1, "text_width"))),
        ),
        {
            "input_ids": "Token ids, padded to the end",
            "last_hidden_state": "One vector for each token",
            "pooled_outputs": "One vector for the text",
        },
    ),
    "unet": Package(
        "Unet",
        ("UnetChunk1", "UnetChunk2"),
        "Predicts the noise in latents at a timestep, for a text.",
        Ports(
            (Port("sample", "float32", LATENT), Port("timestep", "float32", ("batch",)),
             Port("encoder_hidden_states", "float32", ("batch", "text_width", 1, "tokens"))),
            (Port("noise_pred", "float32", LATENT),),
        ),
        {
            "sample": "Latents, unit variance",
            "timestep": "Training step that the noise is of, may be fractional",
            "encoder_hidden_states": "The text encoder's states, channels first",
            "noise_pred": "What the network predicts of them",
        },
    ),
    "vae_decoder": Package(
        "VAEDecoder",
        (),
        "Latents to picture.",
        Ports(
            (Port("z", "float32", (1, "channels", "height", "width")),),
            (Port("image", "float32", (1, "colours", "image_height", "image_width")),),
        ),
        {"z": "Latents, divided by the scaling factor", "image": "Picture, from -1 to 1"},
    ),
    "vae_encoder": Package(
        "VAEEncoder",
        (),
        "Picture to latents.",
        Ports(
            (Port("x", "float32", (1, "colours", "image_height", "image_width")),),
            (Port("latent", "float32", (1, "moments", "height", "width")),),
        ),
        {"x": "Picture, from -1 to 1", "latent": "Mean and log variance of the latents, before the scaling factor"},
    ),
}  # fmt: skip


Arrays = dict[str, np.ndarray]
Predict = Callable[[Arrays], Mapping[str, np.ndarray]]
SUFFIX = ".mlpackage"


def packages(bundle: Bundle, component: str) -> list[Path]:
    """A component's packages, in the order they are called. Raises BundleError where it has none."""
    files = (Path(name) for name in bundle.component(component).files)
    roots = {Path(*path.parts[: i + 1]) for path in files for i, part in enumerate(path.parts) if part.endswith(SUFFIX)}
    if not roots:
        raise BundleError(f"{bundle.path}: {component} has no file in a folder that ends in {SUFFIX}; convert it again")
    return [bundle.path / root for root in sorted(roots)]


def call(component: str, ports: Ports, batch: int, predict: Predict, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """This project's call of a component by Apple's arrays: `batch` rows at a time, the last ones repeated to fill it."""
    check(ports.inputs, inputs, component)
    arrays = _TO[component](inputs)
    rows, size = len(next(iter(arrays.values()))), batch if component == "unet" else 1
    found: list[list[np.ndarray]] = []
    for start in range(0, rows, size):
        some = np.minimum(np.arange(start, start + size), rows - 1)
        outputs = predict({name: np.ascontiguousarray(array[some]) for name, array in arrays.items()})
        names = [port.name for port in PACKAGES[component].ports.outputs]
        found.append([np.asarray(outputs[name], np.float32)[: rows - start] for name in names])
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return {port.name: array for port, array in zip(ports.outputs, joined, strict=True)}


def _text_encoder(inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {"input_ids": inputs["input_ids"].astype(np.float32)}


def _unet(inputs: Mapping[str, np.ndarray]) -> Arrays:
    """encoder_hidden_states (B, T, D) → (B, D, 1, T); one timestep → (B,)."""
    text = inputs["encoder_hidden_states"].transpose(0, 2, 1)[:, :, None]
    timestep = np.full(len(inputs["sample"]), inputs["timestep"], np.float32)
    return {"sample": inputs["sample"], "timestep": timestep, "encoder_hidden_states": text}


def _vae_decoder(inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {"z": inputs["latent_sample"]}


def _vae_encoder(inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {"x": inputs["sample"]}


_TO: dict[str, Callable[[Mapping[str, np.ndarray]], Arrays]] = {
    "text_encoder": _text_encoder,
    "unet": _unet,
    "vae_decoder": _vae_decoder,
    "vae_encoder": _vae_encoder,
}


def back(component: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """From Apple's inputs to this project's."""
    return _BACK[component](arrays)


_BACK: dict[str, Callable[[Mapping[str, np.ndarray]], Arrays]] = {
    "text_encoder": lambda arrays: {"input_ids": arrays["input_ids"].astype(np.int64)},
    "unet": lambda arrays: {
        "sample": arrays["sample"],
        "timestep": np.asarray(arrays["timestep"][0]),
        "encoder_hidden_states": arrays["encoder_hidden_states"][:, :, 0].transpose(0, 2, 1),
    },
    "vae_decoder": lambda arrays: {"latent_sample": arrays["z"]},
    "vae_encoder": lambda arrays: {"sample": arrays["x"]},
}
