"""`python -m bench`: measure bundles, with nothing but kdc_edge and a runtime installed."""

from bench.compare import compare
from bench.devices import devices
from bench.estimate import estimate
from bench.gate import gate
from bench.history import history
from bench.quality import cards, quality
from bench.report import report
from bench.run import run
from kdc_edge import command

COMMANDS: dict[str, command.Command] = {
    "run": run,
    "compare": compare,
    "gate": gate,
    "quality": quality,
    "cards": cards,
    "report": report,
    "estimate": estimate,
    "history": history,
    "devices": devices,
}


def main(argv: list[str] | None = None) -> None:
    command.run(COMMANDS, argv, prog="python -m bench")


if __name__ == "__main__":
    main()
