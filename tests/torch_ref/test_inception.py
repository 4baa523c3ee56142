"""FID's network against torch-fidelity's activations, its resize against torch's, its weights against their hash."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import sha256
from kdc_edge.torch_ref import extractors, inception, weights
from tests.torch_ref.seeded import fill, picture

# torch-fidelity 0.4.0, FeatureExtractorInceptionV3, feature "2048": weights by `fill`, `picture(299)`
EVERY_256TH = [0.0, 5.781371116638184, 0.0, 0.0020830491557717323, 13.408591270446777, 2.5471222400665283]
EVERY_256TH += [3.3622050285339355, 6.7546186447143555]
MEAN, NORM = 2.3503830432891846, 178.8179473876953


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return fill(inception.InceptionV3())


def test_activations_are_those_of_torch_fidelity(network: torch.nn.Module) -> None:
    with torch.inference_mode():
        (found,) = network(inception.prepare([picture(299)]))
    assert found[::256].tolist() == pytest.approx(EVERY_256TH, rel=1e-3, abs=1e-3)
    assert (found.mean().item(), found.norm().item()) == pytest.approx((MEAN, NORM), rel=1e-4)


def test_the_file_s_tensors_are_torchvision_s_names(network: torch.nn.Module) -> None:
    names = network.state_dict()
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias"} <= set(names)
    assert sum(t.numel() for name, t in names.items() if "num_batches" not in name) == 23_885_392  # torch-fidelity's


@pytest.mark.parametrize("side", [64, 512])
def test_the_resize_is_bicubic_with_antialiasing(side: int) -> None:
    pixels = picture(side)
    found = inception.resize(pixels, 299)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = F.interpolate(x, (299, 299), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() < 0.02
    aliased = F.interpolate(x, (299, 299), mode="bicubic", align_corners=False).clamp(0, 255)[0].permute(1, 2, 0)
    assert (np.abs(found - aliased.numpy()).mean() > 10) == (side > 299)


def test_a_fine_checkerboard_becomes_grey() -> None:
    board = np.indices((598, 598)).sum(0) % 2 * 255
    found = inception.resize(np.repeat(board[..., None], 3, 2).astype(np.uint8), 299)
    assert np.abs(found[5:-5, 5:-5] - 127.5).max() < 1


def test_weights_come_from_a_file_with_the_right_hash(network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(BundleError, match=r"sha256 is .*, wanted 6726825d"):
        extractors.inception_v3(str(path))
    extractor = extractors.inception_v3(str(path), sha256(path)[:16])
    assert (extractor.hash, extractor.dimensions) == (sha256(path), 2048)
    assert extractor([picture(64), picture(80)]).shape == (2, 2048)
    with pytest.raises(UsageError, match="eight or more"):
        extractors.inception_v3(str(path), "67")
    with pytest.raises(UsageError, match="no such file"):
        extractors.inception_v3(str(tmp_path / "elsewhere.pth"))


def test_files_that_hold_no_weights_or_others(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (open, ("/dev/null",))

    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(BundleError, match="not readable as weights"):
        weights.read(tmp_path / "evil.pth")
    with pytest.raises(BundleError, match="weights of another network"):
        weights.load(torch.nn.Linear(2, 2), {"weight": torch.zeros(3, 3)}, "x")
