"""From a checkpoint's configs to a pipeline: what is read, and what is refused rather than ignored."""

import json
import shutil
from pathlib import Path

import pytest

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError
from kdc_edge.manifest import PipelineSpec
from kdc_edge.spec import SCHEDULERS, component_ports, pipeline_spec


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def spec_with(folder: Path, config: str, **changes: object) -> PipelineSpec:
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return pipeline_spec(Checkpoint.open(folder))


def test_both_shapes_of_checkpoint(tiny_checkpoint: Path, tiny_sd_checkpoint: Path):
    emoji, sd = (pipeline_spec(Checkpoint.open(path)) for path in (tiny_checkpoint, tiny_sd_checkpoint))
    assert (emoji.latent, emoji.image_size, emoji.latent_scaling) == ((16, 8, 8), (64, 64), 1.0)
    assert (sd.latent, sd.image_size, sd.latent_scaling) == ((4, 8, 8), (16, 16), 0.18215)
    assert (emoji.prediction_type, sd.prediction_type) == ("v_prediction", "epsilon")
    assert (emoji.betas.spacing, emoji.betas.steps_offset, emoji.betas.set_alpha_to_one) == ("trailing", 1, True)
    assert emoji.tokens == 77


def test_only_the_batch_stays_free(tiny_checkpoint: Path):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for component in component_ports(checkpoint, pipeline_spec(checkpoint)).values():
        free = {a for port in (*component.inputs, *component.outputs) for a in port.shape if isinstance(a, str)}
        assert free == {"batch"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_table_is_read_as_diffusers_saves_it(name: str, copy: Path):
    import diffusers

    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    extra = {"clip_sample": False} if name == "DDIMScheduler" else {}
    extra |= {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(**settings, **extra)
    scheduler.save_pretrained(copy / "scheduler")
    spec = pipeline_spec(Checkpoint.open(copy))
    assert spec.sampler == SCHEDULERS[name][0]
    assert spec.betas.spacing == scheduler.config["timestep_spacing"]
    assert spec.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMSchedular"}, "did you mean 'DDIMScheduler'"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clip_sample is True"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "must be one of linear"),
        ("scheduler/scheduler_config.json", {"beta_end": 1e-9}, "betas must rise"),
        ("unet/config.json", {"cross_attention_dim": 33}, "text encoder is 32 wide, the U-Net reads 33"),
        ("unet/config.json", {"in_channels": 9}, "only plain text-to-image"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("vae/config.json", {"scaling_factor": "one"}, "latent_scaling is \"one\", must be a number"),
    ],
)  # fmt: skip
def test_what_would_change_the_pictures_is_refused(config: str, changes: dict[str, object], says: str, copy: Path):
    with pytest.raises(BundleError, match=says):
        spec_with(copy, config, **changes)
