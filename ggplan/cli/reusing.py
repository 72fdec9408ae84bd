"""Describe what `--reuse` copies, and why it does not copy the other tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.conversion.reuse import Reuse
    from ggplan.planning import Plan

_NAMED = 2


def describe_reuse(reuse: Reuse, plan: Plan, *, proven: bool) -> str:
    """A line for the copied tensors, and one for each reason why others are not copied, most bytes first."""
    from ggplan.text import format_bytes, printable

    file = printable(reuse.path.name)
    what = (
        f"copied from {file}"
        if proven
        else f"to be copied from {file}, once their weights and bytes are proven the same"
    )
    lines = [
        f"{len(reuse.tensors):,} of {len(plan.tensors):,} tensors, {format_bytes(reuse.n_bytes)} of "
        f"{format_bytes(plan.tensor_bytes)}, {what}"
    ]
    sizes = {planned.name: planned.n_bytes for planned in plan.tensors}
    groups = [(sum(sizes[name] for name in names), why, names) for why, names in reuse.by_reason().items()]
    for n_bytes, why, names in sorted(groups, key=lambda group: (-group[0], group[1])):
        some = ", ".join(printable(name) for name in names[:_NAMED])
        more = f", {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        lines.append(f"  not {len(names):,} ({format_bytes(n_bytes)}): {why}: {some}{more}")
    return "\n".join(lines)


def reuse_json(reuse: Reuse | None, plan: Plan) -> dict[str, object]:
    """The key `reuse` of a JSON document; empty without --reuse."""
    if reuse is None:
        return {}
    return {
        "reuse": {
            "path": str(reuse.path),
            "tensors": len(reuse.tensors),
            "bytes": reuse.n_bytes,
            "of_tensors": len(plan.tensors),
            "of_bytes": plan.tensor_bytes,
            "copied": sorted(reuse.tensors),
            "not_copied": dict(sorted(reuse.reasons.items())),
        }
    }
