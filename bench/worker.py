"""One side of a gate, in a process of its own: opens a bundle, then times a call for every line it reads.

The gate runs this file's text, and `main()`, with `python -c` from the root of the revision under test, whose own `kdc_edge`
it imports: nothing else of this project may be imported here, and of `kdc_edge` only what every revision has.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    bundle, what, threads, steps, seed = sys.argv[1:]
    from kdc_edge import Pipeline
    from kdc_edge.images import check_picture
    from kdc_edge.runtimes import Options

    pipeline: Any = Pipeline.open(bundle, options=Options(threads=int(threads)))
    inputs: dict[str, Any] = {}

    class Recorder:
        """The component, and what it was called with last."""

        def __init__(self, component: Any) -> None:
            self.component = component

        def __call__(self, **arrays: Any) -> Any:
            inputs.update(arrays)
            return self.component(**arrays)

    def picture() -> Any:
        return pipeline.generate("red apple", seed=int(seed), steps=int(steps))

    call: Any = picture
    if what != "picture":
        component = pipeline.components[what]
        pipeline.components = {**pipeline.components, what: Recorder(component)}
        call = lambda: component(**inputs)  # noqa: E731
    check_picture(picture())
    call()
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        cpu_end, wall_end = time.process_time(), time.perf_counter()
        print(json.dumps([wall_end - wall, cpu_end - cpu]), flush=True)
