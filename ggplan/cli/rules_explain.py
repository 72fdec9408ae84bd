"""`ggplan rules explain`: why a tensor gets its type, what rules do with many, and what a code means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import fallback_option, json_option, model_option, quiet_option

if TYPE_CHECKING:
    from ggplan.ggml_types import GgmlType
    from ggplan.linting.explaining import Explanation, Share, Survey
    from ggplan.model import Model
    from ggplan.planning import FallbackTable

_CODE = re.compile(r"GP\d{3}", re.IGNORECASE)
_LINE = re.compile(r"(?:(?P<file>[^=]+):)?(?P<line>\d{1,6})")

_EPILOG = """\b
Examples:
  ggplan rules explain blk.7.ffn_down_exps.weight -r glm4moe/hq4_k -m GLM-4.5-Air
  ggplan rules explain ffn_down -r my.recipe              a pattern: which rules take its tensors
  ggplan rules explain '@role experts' -r my.recipe       the same of a role
  ggplan rules explain 12 -r my.recipe                    the rule on line 12: what it decides and loses
  ggplan rules explain norms.recipe:3 -r my.recipe        the same of an included file
  ggplan rules explain GP103                              what a code means
"""


@click.command("explain", epilog=_EPILOG, short_help="Show why tensors get their types.")
@click.argument("subject", metavar="TENSOR|PATTERN|LINE|CODE")
@click.option("-r", "--recipe", "recipe_name", metavar="RECIPE", help="A recipe file, or a shipped one.")
@model_option
@opening_options()
@fallback_option
@json_option("the explanation")
@quiet_option
def explain_command(
    subject: str,
    recipe_name: str | None,
    model_name: str | None,
    opening: OpeningOptions,
    fallback: FallbackTable | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show every rule that matches TENSOR, which one decides, and what its shape does to the type.

    Of a PATTERN, or the rule on a LINE, show all its tensors: which rules decide them, and which lose them to
    which. Of a CODE of `ggplan rules check`, print the page.

    Exits 0; 1 if there is no such tensor or rule, or the recipe or model cannot be read; 2 for wrong usage.
    """
    from ggplan.cli.output import print_json

    if _CODE.fullmatch(subject):
        from ggplan.cli.rules_check import page_of, print_page

        if as_json:
            page = page_of(subject)
            print_json({"schema": "ggplan/page@1", "code": subject.upper(), "page": page})
        else:
            print_page(subject)
        return
    if recipe_name is None:
        raise click.UsageError("name a recipe with -r")
    from ggplan.cli.rules_subject import recipe_and_model
    from ggplan.linting.explaining import explain, explain_line, explain_pattern

    recipe, model = recipe_and_model(recipe_name, model_name, opening, quiet=quiet)
    if any(tensor.name == subject for tensor in model.tensors):
        found = explain(model, recipe, subject, fallback)
        if as_json:
            print_json(_json(found))
        else:
            _print(found)
        return
    line = _LINE.fullmatch(subject)
    survey = (
        explain_line(model, recipe, int(line["line"]), line["file"] or "", fallback)
        if line
        else explain_pattern(model, recipe, subject, fallback)
    )
    if as_json:
        print_json(_survey_json(survey))
    else:
        _print_survey(survey, model)


def _print_survey(survey: Survey, model: Model) -> None:
    from ggplan.text import format_bytes, printable

    shown = printable(model.path.name)
    if not survey.tensors:
        click.echo(f"{survey.subject} matches no tensor of {shown}")
        return
    n = len(survey.tensors)
    size = format_bytes(survey.n_bytes)
    click.echo(f"{survey.subject} matches {n:,} tensor{'s' * (n > 1)} of {shown}, {size} as decided\n")
    for share in survey.shares:
        where = share.rule.where if share.rule else "@default"
        mark = "→" if share.decides else " "
        left = f"{where}  {_pattern(share.rule)}".rstrip()
        click.echo(printable(f"{mark} {left} = {share.choice.text}"))
        for line in _deeds(share):
            click.echo(f"    {line}")
    if survey.kept:
        click.echo("  no rule decides")
        for line in _by_type(survey.kept):
            click.echo(f"    {line}")


def _deeds(share: Share) -> list[str]:
    """What a rule does, a line for each type it gives and each rule it loses to."""
    found = [f"decides {line}" for line in _by_type(share.decides)]
    found += [f"loses {_counted(names)} to {rule.where}" for rule, names in share.loses]
    if share.passed_over:
        found.append(f"passes over {_counted(share.passed_over)}, which {_are(share.passed_over)} protected")
    return found


def _by_type(tensors: tuple[tuple[str, GgmlType], ...]) -> list[str]:
    types = dict.fromkeys(type_ for _, type_ in tensors)
    return [f"{_counted([n for n, t in tensors if t == type_])}: {type_}" for type_ in types]


def _counted(names: tuple[str, ...] | list[str]) -> str:
    from ggplan.linting.wording import by_blocks

    kinds = by_blocks(names)
    more = f" and {len(kinds) - 4:,} more kinds" if len(kinds) > 5 else ""
    return f"{len(names):,} ({', '.join(kinds[: 4 if more else 5])}{more})"


def _are(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"


def _survey_json(survey: Survey) -> dict[str, object]:
    return {
        "schema": "ggplan/survey@1",
        "subject": survey.subject,
        "tensors": list(survey.tensors),
        "bytes": survey.n_bytes,
        "rules": [
            {
                "file": share.choice.file,
                "line": share.choice.line,
                "pattern": _pattern(share.rule) or "@default",
                "types": share.choice.text,
                "decides": {name: type_.name for name, type_ in share.decides},
                "loses": [
                    {"file": rule.file, "line": rule.line, "tensors": list(names)}
                    for rule, names in share.loses
                ],
                "passed_over": list(share.passed_over),
            }
            for share in survey.shares
        ],
        "kept": {name: type_.name for name, type_ in survey.kept},
    }


def _print(found: Explanation) -> None:
    from ggplan.text import format_bytes, printable

    tensor = found.tensor
    shape = " × ".join(map(str, tensor.shape))
    roles = ", ".join(found.roles) or "no known role"
    places = [{"cpu": "RAM", "gpu": "GPU"}[device] for device in found.devices]
    place = f"meant for {' and '.join(places)}" if places else "loaded only to draft tokens"
    click.echo(f"{printable(tensor.name)}: {shape}, {tensor.stored_as}; {roles}; {place}")
    if found.protected:
        click.echo(f"protected: {found.protected}, so rules with quantized types pass it over")
    click.echo()
    rows = [
        (s.rule.where if s.rule else "@default", _pattern(s.rule), s.choice.text, s.outcome)
        for s in found.steps
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for (where, pattern, types, outcome), step in zip(rows, found.steps, strict=True):
        mark = "→" if step.outcome == "decides" else " "
        line = f"{mark} {where:<{widths[0]}}  {pattern:<{widths[1]}} = {types:<{widths[2]}}  {outcome}"
        click.echo(printable(line))
        for trial in found.trials if step.outcome == "decides" else ():
            click.echo(f"{'':>{widths[0] + 4}}{trial.type.name}: {trial.reason}")
    if not found.steps:
        click.echo("  no rule matches it")
    if found.fused:
        asked = ", ".join(f"{type_} of {name}" for name, type_ in found.fused)
        click.echo(printable(f"  the model has it in another form; the rules ask for {asked}"))
    if found.fault:
        click.echo(f"  {printable(found.fault)}")
    size, was = format_bytes(found.n_bytes), format_bytes(tensor.n_bytes)
    told = f"{size}, {found.bits_per_weight:.4g} bpw ({was} as {tensor.type})"
    click.echo(f"\n{found.type} by {found.chosen_by}: {told}")


def _pattern(rule: object) -> str:
    from ggplan.rules import Rule

    if not isinstance(rule, Rule):
        return ""
    return f"@role {rule.pattern}" if rule.roles else rule.pattern


def _json(found: Explanation) -> dict[str, object]:
    return {
        "schema": "ggplan/explanation@1",
        "tensor": found.tensor.name,
        "shape": list(found.tensor.shape),
        "source_type": found.tensor.stored_as,
        "roles": list(found.roles),
        "device": found.devices[0] if found.devices else None,
        "devices": list(found.devices),
        "protected": found.protected,
        "rules": [
            {
                "file": s.choice.file,
                "line": s.choice.line,
                "pattern": _pattern(s.rule) or "@default",
                "types": s.choice.text,
                "outcome": s.outcome,
            }
            for s in found.steps
        ],
        "other_form": {name: type_.name for name, type_ in found.fused},
        "trials": [{"type": t.type.name, "fits": t.fits, "reason": t.reason} for t in found.trials],
        "type": found.type.name,
        "chosen_by": found.chosen_by,
        "bytes": found.n_bytes,
        "bits_per_weight": found.bits_per_weight,
        "fault": found.fault,
    }
