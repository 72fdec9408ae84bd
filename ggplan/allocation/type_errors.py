"""How large the error of a type is: the relative squared error that it leaves in a tensor's weights.

    error(q) = sum im_j (W - Wq)_ij^2 / sum im_j W_ij^2          im: the importance of a column

It is nearly a constant of the type: from tensor to tensor it varies by 1 to 2 %, so this table serves where
there are no weights to look at, and costs about 3 % of KL divergence against a look.

Damage is proportional to it: not to its root, and not to the output's absolute error, which says nothing
about how much a tensor matters. Where from:

- llama.cpp's k-quants and i-quants, q8_0: measured with its encoders and an importance matrix on the tensors
  of a trained mixture of experts.
- Other types of llama.cpp: the same encoders on Gaussian weights, times what the first ones differ by (1.06).
- ik_llama.cpp's: by the KL divergence of whole models, between those of the types above that are nearest.
  Measurements of seven models by Thireus, the GGUF Tool Suite and its contributors; they agree within 15 %,
  and give llama.cpp's own types their values within 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import TensorInfo

ERRORS: Mapping[str, float] = MappingProxyType(
    {
        "f32": 0.0, "f16": 1e-8, "bf16": 1.4e-6,
        "iq1_s": 0.24, "iq1_m": 0.2, "iq2_xxs": 0.115, "iq2_xs": 0.087, "iq2_s": 0.060, "iq3_xxs": 0.032,
        "iq3_s": 0.018, "iq4_nl": 0.0055, "iq4_xs": 0.0056,
        "q2_K": 0.070, "q3_K": 0.0205, "q4_K": 0.0049, "q5_K": 0.0012, "q6_K": 0.00029,
        "q4_0": 0.0068, "q4_1": 0.0048, "q5_0": 0.00166, "q5_1": 0.0011, "q8_0": 0.00003,
        "mxfp4": 0.0139, "nvfp4": 0.0116,
        # ik_llama.cpp
        "iq1_kt": 0.142, "iq2_kt": 0.0774, "iq2_ks": 0.0984, "iq2_k": 0.0695, "iq2_kl": 0.044,
        "iq3_kt": 0.0197, "iq3_ks": 0.0218, "iq3_k": 0.0149, "iq4_kt": 0.00634, "iq4_kss": 0.00745,
        "iq4_ks": 0.00474, "iq4_k": 0.00331, "iq5_ks": 0.00095, "iq5_k": 0.0007, "iq6_k": 0.00021,
        "q6_0": 0.00029, "q8_KV": 0.0036,
    }
)  # fmt: skip
"""By the names of types; of interleaved types (`q4_k_r4`) the plain one's name."""


def type_error(name: str) -> float:
    """The relative squared error of a type, by its name.

    Raises
    ------
    PlanError
        If nothing is known of the type.
    TypeNameError
        If it is none.
    """
    plain = parse_type(name).plain.name
    found = ERRORS.get(plain)
    if found is None:
        raise PlanError(
            f"how large the error of {plain} is, is not known",
            hint="choose from the types whose errors are: " + ", ".join(ERRORS),
        )
    return found


@dataclass(frozen=True, slots=True)
class Errors:
    """The relative squared errors that types leave in the tensors of a model.

    Attributes
    ----------
    source
        Where they are from, in a few words.
    measured
        By tensor and type, both by name; of a tensor's other types the error is the table's, as many times as
        those measured are the table's.
    by_type
        By type, whatever the tensor, where `measured` has nothing; what is in neither is the table's.
    """

    source: str
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    by_type: Mapping[str, float] = field(default_factory=dict)

    def of(self, tensor: TensorInfo, type_: GgmlType) -> float:
        """The error of a type in a tensor.

        Raises
        ------
        PlanError
            If it was not measured, and the table has nothing of the type.
        """
        own = self.measured.get(tensor.name, {})
        found = own.get(type_.plain.name)
        if found is not None:
            return found
        # Of a type that cannot be measured, as far from the table as those that can.
        ratios = [
            error / ERRORS[name] for name, error in own.items() if error > 0 and ERRORS.get(name, 0) > 0
        ]
        return self.of_type(type_) * (median(ratios) if ratios else 1.0)

    def knows(self, type_: GgmlType) -> bool:
        """Whether the error of a type is known, whatever the tensor."""
        return type_.plain.name in ERRORS or not {type_.name, type_.plain.name}.isdisjoint(self.by_type)

    def of_type(self, type_: GgmlType) -> float:
        """The error of a type where nothing is known of the tensor; raises `PlanError` as `of` does."""
        found = self.by_type.get(type_.name, self.by_type.get(type_.plain.name))
        return type_error(type_.name) if found is None else found


TABLE = Errors("a table by type (no weight was read)")
"""The errors of the table, whatever the tensor."""
