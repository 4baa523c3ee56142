"""What Apple's Swift package `StableDiffusion` reads: a package for each component, names and axes of its arrays.

Source: github.com/apple/ml-stable-diffusion, swift/StableDiffusion/pipeline: ResourceURLs, TextEncoder, Unet, Decoder.
Arrays are float32; those of a batch of 1 or 2 have it as a fixed axis.
"""

from dataclasses import dataclass

from kdc_edge.ports import Axis, Port, Ports

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
}  # fmt: skip
