"""optimum's own pipeline loads our bundles and makes the golden pictures; it runs in `.venv-optimum`, which make sets up."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import golden
from convert.parity import psnr_db
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE

PYTHON = Path(__file__).parents[2] / ".venv-optimum" / "bin" / "python"
SCRIPT = """
import sys, numpy, torch
from optimum.onnxruntime import ORTDiffusionPipeline
from safetensors.numpy import load_file, save_file

bundle, asked, answered, steps, guidance = sys.argv[1:]
pipe = ORTDiffusionPipeline.from_pretrained(bundle)
drawn = {}
for prompt, noise in load_file(asked).items():
    latents, asked = torch.from_numpy(noise)[None], {"num_inference_steps": int(steps), "guidance_scale": float(guidance)}
    drawn[prompt] = numpy.ascontiguousarray(pipe(prompt, latents=latents, output_type="np", **asked).images[0])
save_file(drawn, answered)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-optimum; make .venv-optimum/.installed"),
]


@pytest.fixture(params=["tiny_bundle", "tiny_sd_bundle", "shipped"], ids=["emoji fp32", "SD fp16", "shipped"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both the emoji's shape (v-prediction, AutoencoderTiny) and Stable Diffusion's, and the one users have."""
    return Bundle.open(DEFAULT_BUNDLE if request.param == "shipped" else request.getfixturevalue(request.param))


def test_optimum_makes_the_golden_pictures(bundle: Bundle, tmp_path: Path):
    stored = load_file(bundle.path / "golden" / "vectors.safetensors")
    asked, answered = tmp_path / "asked.safetensors", tmp_path / "answered.safetensors"
    save_file(dict(zip(golden.PROMPTS, stored["noise"], strict=True)), asked)
    spec = bundle.manifest.pipeline
    arguments = [bundle.path, asked, answered, golden.steps(spec), spec.guidance]
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    drawn = load_file(answered)
    for prompt, picture in zip(golden.PROMPTS, stored["images"], strict=True):
        assert psnr_db(picture, (drawn[prompt] * 255).round().astype(np.uint8)) > 40
