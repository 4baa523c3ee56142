"""Block removal: a compact student's config and weights, derived from any `UNet2DConditionModel` teacher.

    python -m train.student --teacher assets/emoji-64/teacher --student kdc-small --dry-run
    python -m train.student --teacher assets/emoji-64/teacher --budget-macs 0.5 -o runs/student/pruned

Down stages keep their first pairs; up stages their first and their last; the mid block and the innermost stage can go
(arXiv 2505.06995; BK-SDM, 2305.15798). What stays is copied, by a map derived from the two configs. With a budget the
blocks to remove are chosen by measurement (`train.pruning`).
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc_edge import command
from kdc_edge.errors import BundleError, UsageError
from train.quiet import quiet
from train.recipes import StudentConfig
from train.student_spec import STUDENTS, StudentSpec

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from kdc_edge.torch_ref.macs import Cost

Config = Mapping[str, Any]
BLOCK = re.compile(
    r"^(?P<side>down|up)_blocks\.(?P<stage>\d+)\.(?P<kind>resnets|attentions)\.(?P<pair>\d+)\.(?P<rest>.+)$"
)
STAGE = re.compile(r"^(?P<side>down|up)_blocks\.(?P<stage>\d+)\.(?P<rest>.+)$")
PER_STAGE = ("block_out_channels", "down_block_types", "attention_head_dim", "num_attention_heads", "cross_attention_dim",
             "layers_per_block", "transformer_layers_per_block", "only_cross_attention")  # fmt: skip
TOKENS = 77


def student(config: StudentConfig) -> dict[str, Any]:
    """Prune a teacher, by preset or to a budget; says what is left of it and what is copied."""
    quiet()
    from kdc_edge.files import refuse_existing
    from train.folders import load_pipeline

    budgets = {"macs": config.budget_macs, "parameters": config.budget_parameters}
    budgets = {name: share for name, share in budgets.items() if share is not None}
    if any(not 0 < share < 1 for share in budgets.values()):
        raise UsageError(f"a budget is a share of the teacher's, above 0 and below 1, not {budgets}")
    if config.calibration < 1:
        raise UsageError(f"--calibration is {config.calibration}; at least one picture is needed to measure anything")
    if not config.dry_run:
        refuse_existing(config.output_dir, config.force)
    if config.dry_run and not budgets:
        return describe(unet_config(config.teacher, config.revision), STUDENTS[config.student]())
    pipeline = load_pipeline(config.teacher, config.revision)
    spec = STUDENTS[config.student]()
    if budgets:
        from train.loop import pick_device
        from train.pruning import calibration, prune

        pipeline.unet.to(pick_device())
        spec = prune(pipeline.unet, calibration(pipeline, config.pictures, config.calibration, config.seed), budgets)
    found = describe(pipeline.unet.config, spec)
    return found if config.dry_run else found | _save(config, pipeline, spec, found)


def prune_config(teacher: Config, spec: StudentSpec) -> dict[str, Any]:
    """The student's `UNet2DConditionModel` config. Raises UsageError where nothing would be left."""
    full, wanted = pairs(teacher), spec.pairs_per_stage
    wanted = (wanted,) * len(full) if isinstance(wanted, int) else wanted
    if len(wanted) != len(full):
        raise UsageError(f"the teacher has {len(full)} stages, pairs were given for {len(wanted)}")
    for there, left in zip(full, wanted, strict=True):
        if not 1 <= left <= there:
            raise UsageError(f"the teacher has {there} pairs per stage, {left} were asked for; ask for 1 to {there}")
    config = dict(teacher) | {"layers_per_block": list(wanted)}
    if not spec.keep_mid:
        config["mid_block_type"] = None
    if spec.drop_innermost:
        if len(full) < 2:
            raise UsageError("the teacher has one stage only, which cannot be dropped")
        config |= {name: value[:-1] for name in PER_STAGE if isinstance(value := config.get(name), list | tuple)}
        config["up_block_types"] = config["up_block_types"][1:]
    if len(set(config["layers_per_block"])) == 1:
        config["layers_per_block"] = config["layers_per_block"][0]
    return config


def pairs(config: Config) -> tuple[int, ...]:
    """Residual-and-attention pairs of each down stage, from the outside in."""
    layers = config["layers_per_block"]
    return (layers,) * len(config["block_out_channels"]) if isinstance(layers, int) else tuple(layers)


def kept_pairs(side: str, stage: int, student: Config, teacher: Config) -> list[int]:
    """Which of the teacher's pairs the student's stage keeps."""
    depth = stage if side == "down" else len(pairs(student)) - 1 - stage
    left, full = pairs(student)[depth], pairs(teacher)[depth]
    return list(range(left)) if side == "down" else [*range(left), full]


def copy_map(names: list[str], student: Config, teacher: Config) -> dict[str, str]:
    """For each of the student's parameter `names`, the teacher's parameter it starts from."""
    dropped = len(pairs(teacher)) - len(pairs(student))

    def source(name: str) -> str:
        match = STAGE.match(name)
        if not match:
            return name
        side, stage, rest = match["side"], int(match["stage"]), match["rest"]
        if block := BLOCK.match(name):
            rest = f"{block['kind']}.{kept_pairs(side, stage, student, teacher)[int(block['pair'])]}.{block['rest']}"
        return f"{side}_blocks.{stage + (dropped if side == 'up' else 0)}.{rest}"

    return {name: source(name) for name in names}


def build_student(teacher: "UNet2DConditionModel", spec: StudentSpec, fresh: bool = False) -> "UNet2DConditionModel":
    """The pruned network with the teacher's weights, or random ones if `fresh`; in the teacher's dtype, channels last.

    Where dropping the innermost stage changes how wide the input of a layer is (stages of unequal width), that layer
    starts from random weights; `describe` names it.
    """
    network = from_config(prune_config(teacher.config, spec)).to(teacher.device)
    weights, own = {} if fresh else teacher.state_dict(), network.state_dict()
    sources = {} if fresh else copy_map(list(own), network.config, teacher.config)
    fits = {name: weights[s] for name, s in sources.items() if weights[s].shape == own[name].shape}
    network.load_state_dict(own | fits)
    return network.to(dtype=teacher.dtype)


def from_config(config: Config) -> "UNet2DConditionModel":
    """Random weights on torch's current default device."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})


def on_meta(config: Config) -> "UNet2DConditionModel":
    """Shapes without memory."""
    import torch

    with torch.device("meta"):
        return from_config(config)


def cost(network: "UNet2DConditionModel") -> "Cost":
    """Parameters and MACs of one call on one sample; nothing is computed."""
    import torch

    from kdc_edge.torch_ref.macs import count

    size, width = network.config["sample_size"], network.config["cross_attention_dim"]
    with torch.device("meta"):
        inputs = {
            "sample": torch.zeros(1, network.config["in_channels"], size, size),
            "timestep": torch.tensor(0),
            "encoder_hidden_states": torch.zeros(1, TOKENS, width),
        }
    return count(network, inputs)


def unet_config(teacher: str, revision: str | None) -> Config:
    """The U-Net's whole config, of a folder or a hub id; no weights are needed. Raises BundleError, UsageError."""
    from diffusers import UNet2DConditionModel

    from kdc_edge.files import read_json
    from train.folders import check_unet, from_hub, is_hub_id

    if is_hub_id(teacher, revision):
        with from_hub(teacher, revision):
            raw = UNet2DConditionModel.load_config(teacher, subfolder="unet", revision=revision)
    else:
        raw = read_json(Path(teacher) / "unet" / "config.json")
    try:
        config = on_meta(raw).config
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise BundleError(f"{teacher}: its unet/config.json describes no UNet2DConditionModel: {error}") from error
    check_unet(config, teacher)
    return config


def describe(teacher: Config, spec: StudentSpec, random: bool = False) -> dict[str, Any]:
    """Sizes, what is removed and what starts anew, all of it if `random`; a table for people goes to stderr."""
    config = prune_config(teacher, spec)
    networks = on_meta(teacher), on_meta(config)
    costs = [cost(network) for network in networks]
    weights, own = (network.state_dict() for network in networks)
    sources = copy_map(list(own), config, teacher)
    fresh = [name for name, source in sources.items() if random or weights[source].shape != own[name].shape]
    gone = removed(config, teacher)
    rows = [
        (name.replace("_", " "), *(getattr(c, name) for c in costs))
        for name in ("parameters", "macs", "attention_macs")
    ]
    print(f"{'':>14} {'teacher':>17}   {'student':>17}", file=sys.stderr)
    for name, full, left in rows:
        print(f"{name:>14} {full:>17,} → {left:>17,}  {left / full:6.1%}", file=sys.stderr)
    print(f"{'removed':>14} {', '.join(gone) or 'nothing'}", file=sys.stderr)
    print(f"{'copied':>14} {len(own) - len(fresh)} of {len(own)} tensors", file=sys.stderr)
    if fresh and not random:
        print(f"{'anew':>14} {', '.join(fresh)}: they fit no tensor of the teacher's", file=sys.stderr)
    sizes = {who: asdict(c) for who, c in zip(("teacher", "student"), costs, strict=True)}
    return {**sizes, "removed": gone, "copied": len(own) - len(fresh), "anew": fresh, "spec": asdict(spec)}


def removed(student: Config, teacher: Config) -> list[str]:
    """The teacher's blocks that the student lacks."""
    stages, kept = len(pairs(teacher)), len(pairs(student))
    gone = []
    for stage in range(stages):
        sides = (("down", stage, stage), ("up", kept - 1 - stage, stages - 1 - stage))
        for side, own, theirs in sides:
            if stage >= kept:
                gone.append(f"{side}_blocks.{theirs}")
                continue
            full = pairs(teacher)[stage] + (side == "up")
            left = kept_pairs(side, own, student, teacher)
            gone += [f"{side}_blocks.{theirs} pair {pair}" for pair in range(full) if pair not in left]
    if student["mid_block_type"] is None and teacher["mid_block_type"] is not None:
        gone.append("mid_block")
    return gone


def _save(
    config: StudentConfig, pipeline: "StableDiffusionPipeline", spec: StudentSpec, found: Mapping[str, Any]
) -> dict[str, Any]:
    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
    from train.folders import save_pipeline, with_unet
    from train.trainer import seeded

    info = CheckpointInfo(
        format=1,
        recipe="prune",
        config={"spec": asdict(spec)},
        teacher=Checkpoint.open(config.teacher).id if not config.revision else f"{config.teacher}@{config.revision}",
        metrics={"teacher_parameters": found["teacher"]["parameters"], "parameters": found["student"]["parameters"]},
    )
    unet = seeded(config.seed, lambda: build_student(pipeline.unet, spec))
    saved = save_pipeline(config.output_dir, with_unet(pipeline, unet), info, config.force)
    return {"path": str(config.output_dir), "checkpoint": saved.id}


def main(argv: list[str] | None = None) -> None:
    command.run(student, argv, prog="python -m train.student")


if __name__ == "__main__":
    main()
