"""Look after a replay buffer: forget pictures on request, bring several together, give it another size.

    python -m train.buffer runs/continual/buffer --remove 3f2a9c41
    python -m train.buffer runs/continual/buffer --merge other/buffer --replay-memory 128MiB

`kdc-edge inspect` shows what is in one. What a student has learned from a picture stays in its weights, and what was computed
of it in --cache-dir and in the run folder: those are to be deleted by hand.
"""

from typing import Any

from kdc_edge import command
from kdc_edge.errors import UsageError
from train.quiet import quiet
from train.sequences import BufferConfig


def tend(config: BufferConfig) -> dict[str, Any]:
    """Change a buffer in place, all at once or not at all; says what is in it afterwards."""
    quiet()
    from kdc_edge.files import locked
    from kdc_edge.replay import read
    from train.replay import Buffer
    from train.rules import parse_bytes

    if not (config.remove or config.remove_captions or config.merge or config.replay_memory):
        raise UsageError("nothing to do: give --remove, --remove-captions, --merge or --replay-memory")
    read(config.buffer)
    with locked(config.buffer):
        buffer = before = Buffer.open(config.buffer)
        if config.replay_memory is not None:
            buffer = buffer.under(parse_bytes(config.replay_memory))
        for other in config.merge:
            buffer = buffer.merge(Buffer.open(other))
        buffer = buffer.remove(config.remove, config.remove_captions)  # the last word: the others may have it, too
        saved = buffer.save(config.buffer)
    counts = {"items": len(saved), "captions": len(saved.about.captions), "bytes": saved.contents.bytes}
    return {"path": str(config.buffer), "items_before": len(before), **counts, "tasks": list(saved.about.tasks)}


def main(argv: list[str] | None = None) -> None:
    command.run(tend, argv, prog="python -m train.buffer")


if __name__ == "__main__":
    main()
