"""Every command has help with examples, and the examples are commands that ggplan takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from program import run

from ggplan.cli import cli


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command and group."""
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def examples(help: str) -> list[str]:
    """The lines below `Examples:`, a line that goes on with the next one together with it."""
    _, _, block = help.partition("Examples:\n")
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines[: lines.index("") if "" in lines else None]]


def words_of(example: str) -> list[list[str]]:
    """The arguments of each call of ggplan in a line, which may be a pipe; without the comment after it."""
    # Two or more blanks stand before a comment that has no `#`.
    line = re.split(r"\s{2,}(?=\w)(?!.*\|)", example, maxsplit=1)[0]
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    calls: list[list[str]] = [[]]
    for word in lexer:
        if word in ("|", "||"):
            calls.append([])
        else:
            calls[-1].append(word)
    cut = (call[: next((n for n, word in enumerate(call) if word[0] in "<>"), None)] for call in calls)
    return [call[1:] for call in cut if call[:1] == ["ggplan"]]


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_examples_that_it_takes(path: tuple[str, ...]) -> None:
    done = run(*path, "--help", COLUMNS="200")
    assert done.returncode == 0
    found = examples(done.stdout)
    assert found, "no examples"
    calls = [call for example in found for call in words_of(example)]
    quoted = [inner for example in found for inner in re.findall(r"\$\((ggplan [^)]*)\)", example)]
    calls += [call for inner in quoted for call in words_of(inner)]
    assert calls
    assert any(tuple(call[: len(path)]) == path for call in calls), f"no example of ggplan {' '.join(path)}"
    for call in calls:
        parse(call)


def parse(call: list[str]) -> None:
    """Let click parse a call, without running it; its own errors are those of a user."""
    group, arguments, context = cli, call, click.Context(cli, info_name="ggplan")
    while True:
        name, command, arguments = group.resolve_command(context, list(arguments))
        assert name is not None
        assert command is not None
        if isinstance(command, click.Group):
            group, context = command, click.Context(command, info_name=name, parent=context)
            continue
        command.make_context(name, arguments, parent=context)
        return


def test_the_judge_of_examples_sees_what_is_wrong() -> None:
    assert words_of("ggplan types --json | jq '.types[] | .name'") == [["types", "--json"]]
    assert words_of("ggplan verify a.gguf --against B       and each error") == [
        ["verify", "a.gguf", "--against", "B"]
    ]
    assert words_of("ggplan completion fish > x") == [["completion", "fish"]]
    for wrong in (["plan"], ["plan", "x", "--no-such"], ["nonsense"], ["convert", "a", "b", "--effort", "x"]):
        with pytest.raises(click.UsageError):
            parse(wrong)
