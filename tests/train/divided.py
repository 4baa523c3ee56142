"""Programs under FSDP on a CPU's processes. Accelerate divides weights on GPUs alone, and is told here that these are some.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m -- tests.train.divided train.distill …
"""

import os
import runpy
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

# what `accelerate launch --use_fsdp --fsdp_version 2` sets
ENVIRONMENT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def main() -> None:
    os.environ.update(ENVIRONMENT)
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
