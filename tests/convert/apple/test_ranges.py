"""Operators whose results fp16 cannot hold become fp32 islands, and the program is right again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from convert.apple import networks, ranges
from convert.apple.program import convert
from convert.parity import snr_db
from kdc_edge.ports import Port, Ports
from kdc_edge.torch_ref.mil.program import Program
from kdc_edge.torch_ref.quiet import silent
from tests.convert.apple.toy import SETTINGS

PORTS = Ports((Port("z", "float32", (1, 8, 4, 4)),), (Port("image", "float32", (1, 8, 4, 4)),))
OWN = Ports((Port("latent_sample", "float32", ("batch", 8, 4, 4)),), (Port("sample", "float32", ("batch", 8, 4, 4)),))


class Loud(nn.Module):
    """A GroupNorm of activations in the hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z * 700)


def test_a_square_that_overflows_is_kept_in_fp32(tmp_path: Path):
    z = np.random.RandomState(0).standard_normal((1, 8, 4, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = Loud()(torch.from_numpy(z)).numpy()
    found, settings = None, SETTINGS
    answers = []
    for name in ("plain", "islands"):
        with silent():
            convert(networks.trace(Loud().eval(), networks.example(PORTS)), PORTS, settings).save(
                str(tmp_path / f"{name}.mlpackage")
            )
        answers.append(Program.open(tmp_path / f"{name}.mlpackage")(z=z)["image"])
        if found is None:
            found = ranges.overflows(tmp_path / "plain.mlpackage", "vae_decoder", OWN, 1, [{"latent_sample": z}])
            settings = replace(SETTINGS, islands=found.operators)
    assert any(name.startswith("square") for name in found.operators)
    assert found.most > ranges.LARGEST
    assert not snr_db(wanted, answers[0]) > 10
    assert snr_db(wanted, answers[1]) > 50


def test_what_fp16_holds_stays_in_fp16(tmp_path: Path):
    with silent():
        convert(networks.trace(Loud().eval(), networks.example(PORTS)), PORTS, SETTINGS).save(
            str(tmp_path / "quiet.mlpackage")
        )
    small = {"latent_sample": np.full((1, 8, 4, 4), 1e-2, np.float32)}
    assert ranges.overflows(tmp_path / "quiet.mlpackage", "vae_decoder", OWN, 1, [small]).operators == ()
