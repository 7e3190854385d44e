"""Runs of the real thing in processes of their own, to be killed, or to work together. Not a test."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from unteach.core.events import Steps


def killed(toy: Path, out: Path, settings: dict[str, Any], when: int | str) -> None:
    """Erase, and die by SIGKILL after step ``when``, or as soon as a file matches the pattern ``when``."""
    from tests.erase.common import CONCEPT

    from unteach.diffusion import load
    from unteach.erase import erase

    def die(done: int) -> None:
        if done == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(pattern: str) -> None:
        while not any(out.glob(pattern)):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(when, str):
        threading.Thread(target=watch, args=(when,), daemon=True).start()
    erase(load(toy), CONCEPT, seed=5, out=out, save_every=2, events=Steps(die, "doco"), **settings)


def member(toy: Path, out: Path, settings: dict[str, Any]) -> None:
    """One of several processes that erase together; each saves the delta that it got."""
    import torch
    from accelerate import PartialState
    from tests.erase.common import CONCEPT

    from unteach.diffusion import load
    from unteach.erase import erase

    process = PartialState(cpu=True)
    assert process.num_processes == 2
    delta = erase(load(toy), CONCEPT, seed=5, out=out / "shared", **settings)
    delta.save(out / f"rank{process.process_index}.safetensors")
    torch.distributed.destroy_process_group()
