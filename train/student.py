"""Block removal: a compact student's config and weights, derived from any `UNet2DConditionModel` teacher.

Down stages keep their first pairs; up stages their first and their last; the mid block and the innermost stage can go
(arXiv 2505.06995; BK-SDM, 2305.15798). What stays is copied, by a map derived from the two configs.
"""

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdc_edge.errors import UsageError
from train.recipes import StudentSpec

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)
Config = Mapping[str, Any]
BLOCK = re.compile(
    r"^(?P<side>down|up)_blocks\.(?P<stage>\d+)\.(?P<kind>resnets|attentions)\.(?P<pair>\d+)\.(?P<rest>.+)$"
)
STAGE = re.compile(r"^(?P<side>down|up)_blocks\.(?P<stage>\d+)\.(?P<rest>.+)$")
PER_STAGE = ("block_out_channels", "down_block_types", "attention_head_dim", "num_attention_heads", "cross_attention_dim",
             "layers_per_block", "transformer_layers_per_block", "only_cross_attention")  # fmt: skip


def prune_config(teacher: Config, spec: StudentSpec) -> dict[str, Any]:
    """The student's `UNet2DConditionModel` config. Raises UsageError where nothing would be left, or nothing removed."""
    layers = teacher["layers_per_block"]
    if not isinstance(layers, int):
        raise UsageError(f"the teacher's layers_per_block is {layers}; one number for all stages is wanted")
    if not 1 <= spec.pairs_per_stage <= layers:
        raise UsageError(
            f"the teacher has {layers} pairs per stage, {spec.pairs_per_stage} were asked for; ask for 1 to {layers}"
        )
    config = dict(teacher) | {"layers_per_block": spec.pairs_per_stage}
    if not spec.keep_mid:
        config["mid_block_type"] = None
    if spec.drop_innermost:
        if len(teacher["block_out_channels"]) < 2:
            raise UsageError("the teacher has one stage only, which cannot be dropped")
        config |= {name: value[:-1] for name in PER_STAGE if isinstance(value := config.get(name), list | tuple)}
        config["up_block_types"] = config["up_block_types"][1:]
    return config


def copy_map(names: list[str], student: Config, teacher: Config) -> dict[str, str]:
    """For each of the student's parameter `names`, the teacher's parameter it starts from."""
    pairs = {"down": (student["layers_per_block"], teacher["layers_per_block"])}
    pairs["up"] = tuple(count + 1 for count in pairs["down"])
    dropped = len(teacher["block_out_channels"]) - len(student["block_out_channels"])

    def source(name: str) -> str:
        match = STAGE.match(name)
        if not match:
            return name
        side, stage, rest = match["side"], int(match["stage"]), match["rest"]
        stage += dropped if side == "up" else 0
        if block := BLOCK.match(name):
            kept, all_ = pairs[side]
            last = side == "up" and int(block["pair"]) == kept - 1
            rest = f"{block['kind']}.{all_ - 1 if last else block['pair']}.{block['rest']}"
        return f"{side}_blocks.{stage}.{rest}"

    return {name: source(name) for name in names}


def build_student(teacher: "UNet2DConditionModel", spec: StudentSpec) -> "UNet2DConditionModel":
    """The pruned network with the teacher's weights, in the teacher's dtype, channels last.

    Where dropping the innermost stage changes how wide the input of a layer is (stages of unequal width), that layer
    starts from random weights, and a warning says so.
    """
    import torch
    from diffusers import UNet2DConditionModel

    config = prune_config(teacher.config, spec)
    student = UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    weights, own = teacher.state_dict(), student.state_dict()
    copied = {name: weights[source] for name, source in copy_map(list(own), student.config, teacher.config).items()}
    fresh = [name for name, weight in copied.items() if weight.shape != own[name].shape]
    if fresh:
        log.warning("%d tensors fit no tensor of the teacher's and start anew, %s first", len(fresh), fresh[0])
    student.load_state_dict(copied | {name: own[name] for name in fresh})
    return student.to(dtype=teacher.dtype, memory_format=torch.channels_last)


def count(config: Config) -> int:
    """Parameters of the network of `config`, built on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    return sum(parameter.numel() for parameter in network.parameters())
