"""What the configs of a checkpoint say: how its components make a picture, and the sizes of their ports.

Reads Stable Diffusion 1.x and 2.x folders. A setting that would change the pictures and that no sampler here implements
is refused, not ignored.
"""

import math
from typing import Any

from kdc_edge import schema
from kdc_edge.checkpoint import Checkpoint, Sampling
from kdc_edge.errors import BundleError, UsageError, suggest
from kdc_edge.manifest import PipelineSpec
from kdc_edge.ports import COMPONENTS, Ports
from kdc_edge.samplers import SAMPLERS
from kdc_edge.schedule import Schedule

# component → its folder in a checkpoint
FOLDERS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}

# diffusers' scheduler class → our sampler and what the class assumes where its config is silent
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True}),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", {"timestep_spacing": "linspace", "final_sigmas_type": "zero"}),
    "EulerDiscreteScheduler": ("euler", {"timestep_spacing": "linspace"}),
    "LCMScheduler": ("lcm", {"timestep_spacing": "leading", "set_alpha_to_one": True}),
    "PNDMScheduler": ("pndm", {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False}),
}
# settings with one supported value; the first is every class's default unless SCHEDULERS says otherwise
FIXED: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "clip_sample": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "zero",
    "skip_prk_steps": True,
}


def usual(checkpoint: Checkpoint, sampler: str) -> Sampling:
    """Steps and guidance where none are asked for: its own, or the sampler's; consistency models take no guidance."""
    if checkpoint.sampling is not None:
        return checkpoint.sampling
    return Sampling(4, 1.0) if sampler == "lcm" else Sampling(20, 3.0)


def pipeline_spec(
    checkpoint: Checkpoint, *, steps: int | None = None, guidance: float | None = None, sampler: str | None = None
) -> PipelineSpec:
    """The pipeline of a checkpoint; where `sampler`, `steps` or `guidance` is None, as it is usually run.

    Raises UsageError for impossible steps or guidance, BundleError for components that do not fit each other and for a
    scheduler setting that is not implemented.
    """
    own_sampler, betas = _betas(checkpoint)
    sampler = own_sampler if sampler is None else sampler
    own = usual(checkpoint, sampler)
    steps = own.steps if steps is None else steps
    guidance = own.guidance if guidance is None else guidance
    if steps < 1 or not 0 <= guidance < math.inf:
        raise UsageError(f"steps is {steps} and guidance {guidance:g}; they must be at least 1 and at least 0")
    unet, vae, text = (checkpoint.config(name) for name in ("unet", "vae", "text_encoder"))
    latent = _latent(checkpoint, unet, vae)
    if (reads := unet.get("cross_attention_dim")) != (width := text.get("hidden_size")):
        seen = f"{width} wide, the U-Net reads {reads}"
        raise BundleError(f"{checkpoint.path}: the text encoder is {seen}; the components belong to different models")
    upscaling = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    data = {
        "image_size": [latent[1] * upscaling, latent[2] * upscaling],
        "latent": latent,
        "latent_scaling": vae.get("scaling_factor", 0.18215 if vae.get("_class_name") == "AutoencoderKL" else 1.0),
        "tokens": text.get("max_position_embeddings", 77),
        "prediction_type": checkpoint.config("scheduler").get("prediction_type", "epsilon"),
        "betas": betas,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
    }
    spec = schema.parse(PipelineSpec, data, checkpoint.path)
    evaluations(spec)
    return spec


def evaluations(spec: PipelineSpec) -> int:
    """Calls of the denoiser that a picture takes. Raises UsageError where the schedule has not so many steps."""
    return len(SAMPLERS[spec.sampler].plan(Schedule.of(spec.betas), spec.steps))


def component_ports(checkpoint: Checkpoint, spec: PipelineSpec, any_size: bool = False) -> dict[str, Ports]:
    """The port table with every size but the batch and, with `any_size`, the picture's."""
    sizes = axis_sizes(checkpoint, spec)
    if any_size:
        sizes = {axis: size for axis, size in sizes.items() if axis not in spec.sizes}
    return {name: ports.bind(sizes) for name, ports in COMPONENTS.items()}


def axis_sizes(checkpoint: Checkpoint, spec: PipelineSpec) -> dict[str, int]:
    """Sizes by axis name, of all axes but the batch."""
    width = checkpoint.config("text_encoder")["hidden_size"]
    channels = spec.latent[0]
    moments = (2 if checkpoint.config("vae").get("_class_name") == "AutoencoderKL" else 1) * channels
    fixed = {"tokens": spec.tokens, "text_width": width, "colours": 3, "channels": channels, "moments": moments}
    return {**fixed, **spec.sizes}


def _latent(checkpoint: Checkpoint, unet: dict[str, Any], vae: dict[str, Any]) -> list[int]:
    """Channels, height, width; the U-Net and the autoencoder must agree on the channels."""
    channels = vae.get("latent_channels", 4)
    if (ends := [unet.get("in_channels", 4), unet.get("out_channels", 4)]) != [channels, channels]:
        seen = f"{ends[0]} and returns {ends[1]} channels, the VAE has {channels}"
        raise BundleError(f"{checkpoint.path}: the U-Net takes {seen}; only plain text-to-image models are supported")
    if vae.get("shift_factor"):
        raise BundleError(f"{checkpoint.path / 'vae'}: shift_factor {vae['shift_factor']} is not supported, only 0")
    size = unet.get("sample_size")
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        raise BundleError(f"{checkpoint.path / 'unet'}: sample_size is {size}, must be one or two whole numbers")
    return [channels, *size]


def _betas(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """The sampler a scheduler config stands for, and the manifest's betas."""
    config = checkpoint.config("scheduler")
    where = checkpoint.path / "scheduler"
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise BundleError(f"{where}: {name} is not one of {', '.join(SCHEDULERS)}{suggest(str(name), SCHEDULERS)}")
    sampler, implied = SCHEDULERS[name]
    config = {**implied, **config}
    for key, wanted in FIXED.items():
        if config.get(key, wanted) != wanted:
            raise BundleError(f"{where}: {key} is {config[key]}, only {wanted} is supported; change the scheduler")
    return sampler, {
        "schedule": config.get("beta_schedule", "linear"),
        "start": config.get("beta_start", 0.0001),
        "end": config.get("beta_end", 0.02),
        "train_steps": config.get("num_train_timesteps", 1000),
        "spacing": config["timestep_spacing"],
        "steps_offset": config.get("steps_offset", 0),
        "set_alpha_to_one": config.get("set_alpha_to_one", True),
    }
