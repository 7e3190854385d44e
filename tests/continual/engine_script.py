"""A run in its own process, for the tests of the engine: ``engine_script.py FOLDER METHOD PLUG-IN STEP``.

It is killed before step STEP (from 0) is done; -1 lets it run to the end.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.continual import tiny

from unteach.continual import engine


def main(out: Path, method: str, plugin: str, before: int) -> None:
    real = engine.Trainer.step

    def step(self: Any, now: Any) -> Any:
        if now.index == before:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, now)

    engine.Trainer.step = step  # type: ignore[method-assign]
    tiny.run(method, plugin, out=out, save_every=4, training=tiny.training(epochs=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
