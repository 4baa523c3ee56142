"""LPIPS against torchmetrics' own, PSNR and SSIM against scikit-image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import sha256
from kdc_edge.torch_ref import perceptual
from kdc_edge.torch_ref.perceptual import Lpips, psnr, ssim
from tests.torch_ref.seeded import fill, picture


def pairs(side: int = 64, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures, and the same with noise."""
    grid = np.linspace(0, 6, side)
    smooth = [127 + 120 * np.sin(grid[:, None, None] * (i + 1) + grid[None, :, None] * [1, 2, 3]) for i in range(count)]
    a = np.stack(smooth).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 12, a.shape) * np.arange(1, count + 1)[:, None, None, None]
    return a, (a + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(params=["alex", "vgg"])
def lpips(request: pytest.FixtureRequest, tmp_path: Path) -> Lpips:
    pytest.importorskip("torchmetrics")
    build = perceptual.NETWORKS[request.param][0]
    state = {f"features.{name}": tensor for name, tensor in fill(build()).state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2)}, tmp_path / "backbone.pth")
    return Lpips.open(request.param, str(tmp_path / "backbone.pth"), sha256(tmp_path / "backbone.pth"))


def test_lpips_is_torchmetrics_with_the_same_backbone(lpips: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: lpips.backbone)
    network = theirs._LPIPS(pretrained=True, net=lpips.name, pnet_rand=True)
    a, b = pairs()
    tensors = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b))
    with torch.inference_mode():
        expected = network(*tensors).flatten().numpy()
    assert lpips(a, b) == pytest.approx(expected, rel=1e-4)
    assert lpips(a, a) == pytest.approx(np.zeros(3))
    assert (np.diff(lpips(a, b)) > 0).all()


def test_backbones_of_the_wrong_hash_or_name(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "backbone.pth")
    with pytest.raises(BundleError, match="wanted 7be5be79"):
        Lpips.open("alex", str(tmp_path / "backbone.pth"))
    with pytest.raises(UsageError, match="did you mean 'vgg'"):
        Lpips.open("vggg", str(tmp_path / "backbone.pth"))


def test_psnr_and_ssim_are_scikit_image_s() -> None:
    pytest.importorskip("torchmetrics")
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pairs()
    expected = [metrics.peak_signal_noise_ratio(x, y) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b) == pytest.approx(expected)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [metrics.structural_similarity(x, y, channel_axis=2, **options) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b) == pytest.approx(expected, abs=1e-4)
    assert psnr(a, a) == pytest.approx([100] * 3) and ssim(a, a) == pytest.approx([1] * 3)


def test_noise_is_nothing_like_a_picture() -> None:
    pytest.importorskip("torchmetrics")
    a, _ = pairs(count=1)
    assert psnr(a, picture(64)[None])[0] < 10 and abs(ssim(a, picture(64)[None])[0]) < 0.1
