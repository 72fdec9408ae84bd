"""The problem: a model with what each tensor may get, prepared once and solved for any budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ggplan.allocation.banding import Banded, solve_bands, solve_freely
from ggplan.allocation.budget import Row, bpw_row, header_bytes, kld_row, size_row
from ggplan.allocation.candidates import TensorChoices, allowed_types, choices_of, damage_of
from ggplan.allocation.curves import Curve, curve_of, errors_by_curve, scaled_to_curve
from ggplan.allocation.grouping import Chain, Group, chains_of, without_effect
from ggplan.allocation.machine_rows import SPEED, fast_alone
from ggplan.allocation.options import HARMONISED, OptimizeOptions, check_options
from ggplan.allocation.scales import Scales, scales_by_prior, scales_by_table
from ggplan.allocation.sensitivity_tables import read_sensitivities
from ggplan.allocation.solving import MOST_NODES, Shortfall
from ggplan.allocation.standing import Stands, standing
from ggplan.allocation.type_errors import ERRORS, TABLE, Errors
from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model, TensorInfo, require_model
from ggplan.planning import Role
from ggplan.planning.importance import entry_of
from ggplan.planning.settling import settle
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

NO_FILE = "no file of the allowed types is within the budget"
_OF_THE_FILE = ("size", "bpw")


@dataclass(frozen=True)
class Problem:
    """What is to be solved.

    Attributes
    ----------
    model
        With the tensors that the file will have.
    options
        As they were given.
    scales, errors
        The sensitivities of the tensors, and the errors of the types, that it rests on.
    standing
        What pins and the base recipe decide, by tensor.
    choices
        Of each tensor, in the order of the model.
    chains
        The tensors that may get several types, as kinds along the layers.
    notes
        What the user should know of what was given.
    recorded
        Bytes that a conversion adds to the header for an imatrix or a calibration.
    """

    model: Model
    options: OptimizeOptions
    scales: Scales
    errors: Errors
    standing: Mapping[str, Stands]
    choices: tuple[TensorChoices, ...]
    chains: tuple[Chain, ...]
    notes: tuple[str, ...]
    recorded: int = 0

    def damage(self, tensor: TensorInfo, type_: GgmlType) -> float:
        """What is lost by a tensor of any type, in nats.

        Raises
        ------
        PlanError
            If the error of the type is not known.
        """
        sensitivity = 0.0 if tensor.name in self._drafting else self.scales.values.get(tensor.name, 0.0)
        return damage_of(tensor, type_, sensitivity=sensitivity, errors=self.errors)

    def types_of(self, found: Banded) -> dict[str, GgmlType]:
        """The type of each tensor in a solution, by name."""
        types = {c.tensor.name: c.candidates[0].type for c in self.choices if c.fixed}
        for group, option in zip(found.groups, found.chosen, strict=True):
            types |= {m.tensor.name: group.types[option] for m in group.members}
        return types

    @cached_property
    def header(self) -> int:
        """What the file takes besides its tensors, without a recipe's text, in bytes."""
        return header_bytes(self.model) + self.recorded

    @cached_property
    def _drafting(self) -> frozenset[str]:
        return frozenset(c.tensor.name for c in self.choices if c.role is Role.NEXTN)


def prepare(
    model: Model,
    options: OptimizeOptions,
    *,
    scales: Scales | None = None,
    errors: Errors | None = None,
    imatrix: Imatrix | None = None,
    recorded: int = 0,
) -> Problem:
    """The problem of a model and options.

    Parameters
    ----------
    scales
        The sensitivities of the tensors; by default those of the options' table, or the prior's.
    errors
        The errors of the types; by default the table's.
    imatrix
        Says which tensors can get types that need one.
    recorded
        Bytes that the conversion will add to the header (see `recorded_bytes`).

    Raises
    ------
    PlanError, RecipeError, MeasureError, TypeNameError, ImatrixError
        As `ggplan.optimize` does.
    """
    require_model(model)
    check_options(options)
    model = settle(model)
    curve = curve_of_options(model, options)
    noted: tuple[str, ...] = ()
    if curve is not None:
        by_curve = errors_by_curve(curve)
        errors = by_curve if errors is None else replace(errors, by_type=by_curve.by_type)
        noted = _used_of_curve(curve, errors)
    errors = errors or TABLE
    allowed = allowed_types(options.types, options.engine, errors)
    scales = scales or scales_of(model, options, errors)
    if curve is not None:
        scales = scaled_to_curve(scales, curve, model)
    stands, notes = standing(model, options.pins, options.base, options.engine)
    pinned = {name: found.decision for name, found in stands.items()}
    covered = None if imatrix is None else {t.name for t in model.tensors if entry_of(t, imatrix) is not None}
    choices = choices_of(
        model, allowed, scales.values, pinned, options.fallback,
        only_allowed=bool(options.types), errors=errors, covered=covered,
    )  # fmt: skip
    if options.target is not None and options.target.fast_types:
        choices, slow = fast_alone(choices, model, options.target, options.engine)
        notes = (*notes, *slow)
    notes = (*notes, *noted)
    _check_harmonised(model, options)
    chains = chains_of(choices, harmonised=options.harmonised)
    return Problem(model, options, scales, errors, stands, choices, chains, notes, recorded)


def _used_of_curve(curve: Curve, errors: Errors) -> tuple[str, ...]:
    """What is used of a curve where errors were measured on the weights, too."""
    measured = {name for own in errors.measured.values() for name in own}
    if not measured:
        return ()
    others = [name for name in curve.damages if parse_type(name).plain.name not in measured]
    types = f", and the errors of {', '.join(others)}" if others else ""
    return (
        f"of the {curve.source} the level is used, what all tensors lose together{types}; errors of types are"
        " those measured on the weights",
    )


def _check_harmonised(model: Model, options: OptimizeOptions) -> None:
    if options.harmonised == HARMONISED:
        return  # of a model that has neither gate nor up there is nothing to say
    for words in options.harmonised:
        if len(set(words)) < 2:
            raise PlanError(
                f"nothing is harmonised with {printable(', '.join(words))} alone",
                hint="name two words or more, such as gate,up or q,k,v; or `none`",
            )
    if idle := without_effect((t.name for t in model.tensors), options.harmonised):
        raise PlanError(
            f"no kind of tensor has the harmonised word {printable(idle[0])}",
            hint="words are what stands between `_` in a tensor's name, such as gate,up or q,k,v",
        )


def scales_of(model: Model, options: OptimizeOptions, errors: Errors = TABLE) -> Scales:
    """The sensitivities that options ask for."""
    if options.table is None:
        return scales_by_prior(model)
    return scales_by_table(model, read_sensitivities(options.table), printable(str(options.table)), errors)


def curve_of_options(model: Model, options: OptimizeOptions) -> Curve | None:
    """The curve that options name."""
    if options.curve is None:
        return None
    return curve_of(read_sensitivities(options.curve), model.path.name, printable(str(options.curve)))


def rows_of(problem: Problem, room: int) -> tuple[Row, ...]:
    """The limits of the options; `room` bytes of the file are for the recipe's text in its header."""
    model, options = problem.model, problem.options
    rows: list[Row] = []
    if options.size is not None:
        rows.append(size_row(options.size, problem.header + room))
    if options.bpw is not None:
        rows.append(bpw_row(options.bpw, sum(t.n_weights for t in model.tensors)))
    if options.max_kld is not None:
        rows.append(kld_row(options.max_kld, problem.scales.level, problem.damage))
    return tuple(rows)


def solved(problem: Problem, rows: Sequence[Row], *, nodes: int = MOST_NODES) -> Banded:
    """The types of least damage within the rows; where a row limits the damage, those of the fewest bytes.

    Parameters
    ----------
    nodes
        Of branch and bound, at most (see `ggplan.allocation.solving.solve`).

    Raises
    ------
    PlanError
        If a row cannot be met, with by how much.
    """
    if not any(row.name == "kld" for row in rows):
        return _solved(problem, rows, problem.chains, nodes)
    # Rows of the bytes of the whole file are left out at first: what they are about is what is minimised, so
    # if the answer is above one, it says by how much.
    smallest = [
        Chain(tuple(replace(g, damages=tuple(map(float, g.n_bytes))) for g in chain.layers))
        for chain in problem.chains
    ]
    found = _solved(problem, [row for row in rows if row.name not in _OF_THE_FILE], smallest, nodes)
    for row in rows:
        if row.name in _OF_THE_FILE and (used := _used(problem, row, found)) > row.limit:
            kept = next(kld.words for kld in rows if kld.name == "kld")
            raise _no_file(problem, f"with {kept}, {row.short(used)}", "--max-kld")
    # Of the files of so few bytes the one that loses least; how good it is, is told of the bytes.
    limit = size_row(1, 0)
    limit = replace(limit, limit=_used(problem, limit, found))
    others = [row for row in rows if row.name not in _OF_THE_FILE]
    best = _solved(problem, [limit, *others], problem.chains, nodes)
    return replace(best, damage=found.damage, bound=found.bound)


def _solved(problem: Problem, rows: Sequence[Row], chains: Sequence[Chain], nodes: int) -> Banded:
    fixed = [c for c in problem.choices if c.fixed]
    limits = [
        row.limit - row.taken - sum(row.cost(c.tensor, c.candidates[0].type) for c in fixed) for row in rows
    ]
    costs = [[[_costs(row, group) for group in chain.layers] for row in rows] for chain in chains]
    bands = problem.options.bands
    if bands:
        found = solve_bands(chains, costs, limits, bands, nodes=nodes)
    else:
        found = solve_freely(chains, costs, limits, nodes=nodes)
    if isinstance(found, Shortfall):
        row = rows[found.row]
        over = max(found.least - limits[found.row], 0)
        wanted = "--max-kld" if row.name == "kld" else "budget"
        n_bytes = over if row.name not in ("kld", SPEED) else 0.0
        raise _no_file(problem, row.short(row.limit + over), wanted, n_bytes)
    return found


def _used(problem: Problem, row: Row, found: Banded) -> float:
    """What an answer uses of a row."""
    fixed = sum(row.cost(c.tensor, c.candidates[0].type) for c in problem.choices if c.fixed)
    chosen = zip(found.groups, found.chosen, strict=True)
    return row.taken + fixed + sum(_costs(row, group)[option] for group, option in chosen)


def _no_file(problem: Problem, why: str, wanted: str, over: float = 0.0) -> PlanError:
    """The error of a budget that cannot be met; `wanted` is what would have to be larger, by `over` bytes."""
    ways, less = [f"give a larger {wanted}"], []
    if any(c.fixed == "pinned" for c in problem.choices):
        ways.append("pin fewer tensors")
    if wanted != "budget":
        ways.append("allow others with --types")
    else:
        smaller, saved = smaller_types(problem)
        drafts = sum(c.candidates[0].n_bytes for c in problem.choices if c.fixed == "drafting")
        for n_bytes, way, what in (
            (saved, "allow smaller types with --types", f"smaller --types ({', '.join(smaller)})"),
            (drafts, "leave the block that drafts tokens out with `--mtp drop`", "`--mtp drop`"),
        ):
            if n_bytes and n_bytes >= over:
                ways.append(f"{way} ({', '.join(smaller)})" if way.endswith("--types") else way)
            elif n_bytes:
                less.append(f"{what} would save {format_bytes(n_bytes)} of it")
    hint = ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return PlanError(f"{NO_FILE}: {why}", hint="; ".join([hint, *less]))


def smaller_types(problem: Problem) -> tuple[list[str], int]:
    """The types of the engine that make a file smaller than the smallest one of those allowed, and the bytes
    that they save.
    """
    engine = problem.options.engine
    known = [parse_type(name) for name in ERRORS]
    known = [t for t in known if t.is_quantized and t.engine in ("llama.cpp", engine)]
    found: dict[str, None] = {}
    saved = 0
    for choice in problem.choices:
        tensor, is_end = choice.tensor, choice.role in (Role.EMBEDDINGS, Role.OUTPUT)
        smaller = {
            type_.tensor_bytes(tensor.shape): type_.name
            for type_ in (() if choice.fixed else known)
            if type_.fits(tensor.n_columns) and not (is_end and type_.requires_imatrix)
        }
        least = choice.candidates[0].n_bytes
        if smaller and min(smaller) < least:
            found[smaller[min(smaller)]] = None
            saved += least - min(smaller)
    return list(found), saved


def _costs(row: Row, group: Group) -> list[float]:
    """What each type of a group takes of a row."""
    if row.name == "size":
        return list(map(float, group.n_bytes))  # the same, known already
    return [float(sum(row.cost(m.tensor, type_) for m in group.members)) for type_ in group.types]
