"""How `run.py` talks to its workers: one JSON object a line on standard input, one answer a line on standard output."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


def take_output() -> TextIO:
    """Takes standard output for answers: whatever libraries print from here on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(commands: dict[str, Callable[..., dict[str, Any]]], answers: TextIO) -> None:
    """Answers `{"do": NAME, ...}` with what `commands[NAME](...)` returns until standard input ends.

    A command that fails ends the process with its traceback.
    """
    for line in sys.stdin:
        given = json.loads(line)
        answer = commands[given.pop("do")](**given)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(work: Callable[[int], None], steps: int) -> dict[str, float]:
    """Wall and process CPU seconds per step of `work(steps)`, which must return only when everything is computed."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(steps)
    return {"wall": (time.perf_counter() - wall) / steps, "cpu": (time.process_time() - cpu) / steps}


def peak_bytes() -> int:
    """Largest resident size of this process so far, compilation included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def since_start() -> float:
    """Seconds of wall time since this process was started (Linux)."""
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    uptime = float(open("/proc/uptime").read().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
