"""Write `ggplan/offload/flags/llama.cpp.txt` from a tree of llama.cpp.

Run as `python tools/make_flags.py TREE [BUILD]`. The options of all programs but llama-bench stand in
`common/arg.cpp`, as calls of `add_opt`; those of llama-bench, which has a parser of its own, in
`tools/llama-bench/llama-bench.cpp`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TABLE = Path(__file__).parent.parent / "ggplan" / "offload" / "flags" / "llama.cpp.txt"
HEAD = """\
# The options of llama.cpp {build}: how many values, which programs, the names, after `/` those that say no,
# and the environment variable. `common` is every program but llama-bench. By tools/make_flags.py.
"""


def calls(source: str) -> list[str]:
    """The text in the parentheses of every `add_opt`."""
    found = []
    for match in re.finditer(r"add_opt\(common_arg\(", source):
        start = at = match.end() - len("(common_arg(")
        depth = 0
        while True:
            character = source[at]
            if source.startswith('R"(', at):
                at = source.index(')"', at) + 1
            elif character == '"':
                at += 1
                while source[at] != '"':
                    at += 2 if source[at] == "\\" else 1
            elif character in "()":
                depth += 1 if character == "(" else -1
                if not depth:
                    break
            at += 1
        found.append(source[start : at + 1])
    return found


def line_of(call: str, groups: dict[str, str]) -> str:
    names = re.match(r"\(common_arg\(\s*(?://[^\n]*\s*)*\{([^}]*)\}\s*,\s*(?:\{([^}]*)\}\s*,\s*)?", call)
    assert names, call[:200]
    handler = re.search(r"\]\((common_params &[^)]*)\)", call[names.end() :])
    assert handler, call[:200]
    arguments = [a.strip() for a in handler[1].split(",")][1:]
    n_values = 0 if not arguments or arguments[0].startswith("bool") else len(arguments)
    examples = re.search(r"set_examples\(\{?([^})]*)", call)
    text = groups.get(examples[1].strip(), examples[1]) if examples else "LLAMA_EXAMPLE_COMMON"
    programs = [e.strip().removeprefix("LLAMA_EXAMPLE_").lower() for e in text.split(",") if e.strip()]
    variable = re.search(r'set_env\("([^"]+)"', call)
    words = [str(n_values), ",".join(programs), *re.findall(r'"([^"]+)"', names[1])]
    if names[2]:
        words += ["/", *re.findall(r'"([^"]+)"', names[2])]
    return " ".join([*words, *([f"${variable[1]}"] if variable else [])])


def bench_lines(source: str) -> list[str]:
    lines = []
    body = source[source.index("static cmd_params parse_cmd_params") :]
    tests = list(re.finditer(r"if \((?:llama_supports_rpc\(\) && \()?(arg == [^{]*)\{", body))
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        names = re.findall(r'arg == "([^"]+)"', test[1])
        block = body[test.end() : following.start() if following else test.end() + 400]
        lines.append(" ".join(["1" if "++i" in block else "0", "llama-bench", *names]))
    return lines


def table(tree: Path) -> list[str]:
    """The lines of the table for a tree of llama.cpp."""
    source = (tree / "common" / "arg.cpp").read_text(encoding="utf-8")
    groups = dict(re.findall(r"llama_example> (\w+) = \{([^}]*)\}", source))
    body = source[
        source.index("common_params_context common_params_parser_init(common_params & params, ll") :
    ]
    bench = (tree / "tools" / "llama-bench" / "llama-bench.cpp").read_text(encoding="utf-8")
    return [*(line_of(call, groups) for call in calls(body)), *bench_lines(bench)]


def main() -> None:
    tree, build = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "b11434"
    lines = table(tree)
    TABLE.write_text(HEAD.format(build=build) + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} options in {TABLE}")


if __name__ == "__main__":
    main()
