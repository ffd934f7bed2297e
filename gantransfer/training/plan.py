"""What a run would do, before it does it: the text of `--dry_run`."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from clu import parameter_overview

from gantransfer import config as fields
from gantransfer.training.partition import bytes_of
from gantransfer.training.prepare import Task
from gantransfer.training.step import step

MIB = 2**20


def describe_task(task: Task, decisions: Sequence[str]) -> str:
    """Returns the resolved config, the data, what was decided, the partition, the parameters and the cost of one step.

    Args:
      task: a prepared run.
      decisions: lines that were logged while it was prepared.
    """
    variables = {"generator": task.start.generator, "discriminator": task.start.discriminator}
    overviews = [
        f"{role}\n{parameter_overview.get_parameter_overview(task.variables(moving, role)['params'])}"
        for role, moving in variables.items()
    ]
    sections = {
        "config": json.dumps(fields.to_json(task.config), indent=2),
        "data": task.images.class_table(),
        "decisions": "\n".join(decisions),
        "partition": task.partition.table(),
        "parameters": "\n".join(overviews),
        "memory and cost": cost_table(task),
    }
    return "\n\n".join(f"== {name} ==\n{text}" for name, text in sections.items())


def compiled_step(task: Task) -> Any:
    """The step's program in which every method is due, compiled but not run."""
    everything = frozenset(method.name for method in task.recipe.with_hook("loss"))
    program: Callable = jax.jit(partial(step, task.recipe, everything), donate_argnums=0, out_shardings=task.shardings)
    return program.lower(task.initial_state(), task.held, task.example_batch()).compile()


def cost_table(task: Task) -> str:
    """Memory of what a step carries, and of the compiled step itself, per device where the compiler counts by
    device.
    """
    state, held = task.start, task.held
    trained = bytes_of(state.generator.trained) + bytes_of(state.discriminator.trained)
    rows = {
        "trained parameters": trained,
        "frozen parameters (one copy)": bytes_of(held.generator) + bytes_of(held.discriminator),
        "running average of G": bytes_of(state.ema),
        "optimizer": bytes_of(state.optimizer_g) + bytes_of(state.optimizer_d),
        "methods": bytes_of(state.methods),
        "images on the device": bytes_of(held.images) if held.images is not None else 0,
    }
    compiled = compiled_step(task)
    memory = compiled.memory_analysis()
    if memory is not None:
        rows |= {
            "step: arguments": memory.argument_size_in_bytes,
            "step: outputs": memory.output_size_in_bytes,
            "step: temporary": memory.temp_size_in_bytes,
        }
    lines = [f"{name:<30} {size / MIB:>10.2f} MiB" for name, size in rows.items()]
    flops = (compiled.cost_analysis() or {}).get("flops")
    if flops:
        lines.append(f"{'step: arithmetic':<30} {flops / 1e9:>10.2f} GFLOP")
    return "\n".join(lines)
