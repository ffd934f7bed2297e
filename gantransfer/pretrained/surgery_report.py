"""What surgery did, leaf by leaf: for people to read and for the run's record."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gantransfer.models.family import ROLES, Role
from gantransfer.pretrained.class_map import MappedClass

Status = Literal["kept", "reshaped", "fresh", "dropped"]


@dataclass(frozen=True)
class SurgeryReport:
    """What surgery did; `str` of it is for people, `to_json` for the run's record.

    Attributes:
      what: the operation in words.
      leaves: for each leaf (`generator/params/...`), kept | reshaped | fresh | dropped; "reshaped" is made from the
        source's values.
      classes: the resolved map, one entry per target class.
      step0: what equals what before the first update, in words.
      singular_values: per spectrally normalised table, its largest singular value in the source and in the target.
      projection_scale: constant factor of the target discriminator's projection; None where it has none.
      noise: standard deviation added to the generator's rows.
      notes: further lines, such as how well something was fitted.
    """

    what: str
    leaves: Mapping[str, Status]
    classes: tuple[MappedClass, ...] = ()
    step0: tuple[str, ...] = ()
    singular_values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    projection_scale: float | None = None
    noise: float = 0.0
    notes: tuple[str, ...] = ()

    def fresh(self) -> dict[Role, frozenset[str]]:
        """Returns per role the paths, in `params`, of the leaves that hold random values."""
        prefixes = {role: f"{role}/params/" for role in ROLES}
        return {
            role: frozenset(
                path.removeprefix(start) for path, s in self.leaves.items() if s == "fresh" and path.startswith(start)
            )
            for role, start in prefixes.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain dictionaries and lists."""
        return dataclasses.asdict(self) | {"leaves": dict(self.leaves)}

    def __str__(self) -> str:
        counts = {s: list(self.leaves.values()).count(s) for s in ("kept", "reshaped", "fresh", "dropped")}
        lines = [f"{self.what}: " + ", ".join(f"{n} leaves {s}" for s, n in counts.items() if n)]
        lines += [f"  {s} {path}" for path, s in self.leaves.items() if s != "kept"]
        lines += [f"  class {mapped}" for mapped in self.classes]
        lines += [
            f"  largest singular value of {path}: {a:.4g} -> {b:.4g}" for path, (a, b) in self.singular_values.items()
        ]
        if self.projection_scale is not None:
            lines.append(f"  projection scale {self.projection_scale:.6g}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines + [f"  step 0: {law}" for law in self.step0])
