"""Child processes for tests: forked from one warm server a test process, so that the libraries are imported once."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
# One list for all: the server is started by the first test that needs it.
CONTEXT.set_forkserver_preload(
    ["torch.distributed.fsdp", "unteach.erase", "tests.guard.script_full", "tests.guard.script_lora"]
)


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a module's top level."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def run(function: Callable[..., Any], *arguments: Any, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Call a function in a process of its own; its exit code and what it wrote, as of ``subprocess.run``."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        process = start(_written, files, function, arguments)
        process.join(timeout)
        assert process.exitcode is not None, f"still running after {timeout} s"
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def together(function: Callable[..., Any], *arguments: Any, world: int = 2, timeout: float = 120) -> None:
    """Call a function in several processes that find each other as those of ``torchrun`` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [start(_member, rank, world, port, function, arguments) for rank in range(world)]
    for process in members:
        process.join(timeout)
        assert process.exitcode == 0


def _written(files: list[Path], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        with file.open("wb") as target:
            os.dup2(target.fileno(), stream.fileno())
    function(*arguments)


def _member(rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    function(*arguments)
