"""A plan as JSON, for other programs: one object with its own version."""

from __future__ import annotations

from ggplan.planning.devices import Memory
from ggplan.planning.outcomes import outcome_of, outcomes
from ggplan.planning.plan import Plan, PlannedTensor
from ggplan.planning.summary import Share, by_role, by_type, in_memory

SCHEMA = "ggplan/plan@1"


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as an object of plain JSON types.

    Shapes have rows first. `offset` counts from the start of the file's data part, which begins at
    `header_bytes`; an inventory has no tokenizer, so its `file_bytes` is a lower bound.
    """
    return {
        "schema": SCHEMA,
        "model": {
            "path": str(plan.model.path),
            "kind": plan.model.kind,
            "architecture": plan.model.architecture,
        },
        "recipe": None
        if plan.recipe is None
        else {"name": plan.recipe.name, "sha256": plan.recipe.sha256, "rules": len(plan.recipe.rules)},
        "imatrix": None if plan.imatrix is None else str(plan.imatrix.path),
        "fallback": plan.fallback,
        "totals": {
            "tensors": len(plan.tensors),
            "weights": plan.n_weights,
            "tensor_bytes": plan.tensor_bytes,
            "header_bytes": len(plan.header),
            "file_bytes": plan.file_bytes,
            "bits_per_weight": plan.bits_per_weight,
        },
        "memory": _memory_json(in_memory(plan)),
        "by_class": [_share_json(share) for share in by_role(plan)],
        "by_type": [_share_json(share) for share in by_type(plan)],
        "codes": codes_json(plan),
        "tensors": [_tensor_json(planned) for planned in plan.tensors],
    }


def codes_json(plan: Plan) -> list[dict[str, object]]:
    """What becomes of the codes of a quantized checkpoint, for JSON."""
    return [
        {
            "outcome": outcome.words,
            "type": outcome.type.name,
            "tensors": outcome.n_tensors,
            "bytes": outcome.n_bytes,
        }
        for outcome in outcomes(plan.tensors)
    ]


def _memory_json(memory: Memory) -> dict[str, object]:
    return {
        "ram_bytes": memory.ram,
        "ram_bytes_per_token": memory.ram_per_token,
        "gpu_bytes": memory.gpu,
        "nextn_bytes": memory.nextn,
    }


def _share_json(share: Share) -> dict[str, object]:
    return {
        "label": share.label,
        "tensors": share.n_tensors,
        "weights": share.n_weights,
        "bytes": share.n_bytes,
        "bits_per_weight": share.bits_per_weight,
        "types": list(share.types),
    }


def _tensor_json(planned: PlannedTensor) -> dict[str, object]:
    rule = planned.rule
    return {
        "name": planned.name,
        "shape": list(planned.tensor.shape),
        "source_type": planned.tensor.stored_as,
        "codes": outcome_of(planned) or None,
        "type": planned.type.name,
        "class": planned.role.value,
        "bytes": planned.n_bytes,
        "offset": planned.offset,
        "chosen_by": planned.chosen_by,
        "rule": None
        if rule is None
        else {"file": rule.file, "line": rule.line, "pattern": rule.pattern, "types": rule.choice.text},
        "fallback_from": planned.asked.name if planned.asked else None,
    }
