"""The codes of diagnostics, one page each: what is wrong, why it matters, and what to write instead.

This is the one source: `ggplan rules check --explain CODE` prints a page, `tools/make_docs.py` writes them
all to docs/diagnostics.md. GP0xx is the text of a recipe, GP1xx rules that meet the names of a model, GP2xx
types that meet its shapes, GP3xx what a recipe demands of itself. A code never changes its meaning and is
never used again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """What there is to say about a code; `example` and `instead` are lines of a recipe."""

    title: str
    why: str
    example: str = ""
    instead: str = ""


PAGES: dict[str, Page] = {
    "GP001": Page(
        "a rule has no `=`",
        "A line is a rule `PATTERN = TYPE`, a directive that begins with `@`, or a comment that "
        "begins with `#`.",
        r"attn_q\.weight q8_0",
        r"attn_q\.weight = q8_0",
    ),
    "GP002": Page(
        "unknown tensor type",
        "A type is a name of ggml (`ggplan types` lists them), in any case. `Q4_K_M` is llama.cpp's "
        "name of a mix of several types, and `q8_K` a type of intermediate results that no file can "
        "hold.",
        r"ffn_up_exps\.weight = Q4_K_M",
        r"ffn_up_exps\.weight = q4_K",
    ),
    "GP003": Page(
        "the pattern is not a regular expression",
        "A bracket is never closed, or a repetition repeats nothing. A bracket that is meant as a "
        "character needs a backslash.",
        r"attn_[qk\.weight = q8_0",
        r"attn_[qk]\.weight = q8_0",
    ),
    "GP004": Page(
        "the pattern is not portable",
        "A pattern may hold only what RE2, llama.cpp (`std::regex`) and Python read the same way: no "
        "look-around, no back-references, no inline flags, no characters beyond ASCII. List what "
        "shall match, and put exceptions into a rule above.",
        r"blk\.(?!0\.)\d+\.ffn_down\.weight = q6_K",
        r"blk\.{1..46}\.ffn_down\.weight = q6_K",
    ),
    "GP006": Page(
        "unknown directive",
        "A line that begins with `@` is a directive; a misspelt one would silently do nothing.",
        "@defualt q8_0",
        "@default q8_0",
    ),
    "GP007": Page(
        "a pattern or a type is missing",
        "A rule needs both sides of `=`, and a type on both sides of each `|`.",
        r"ffn_down_exps\.weight = q6_K |",
        r"ffn_down_exps\.weight = q6_K | q8_0",
    ),
    "GP009": Page(
        "a limit is exceeded",
        "A recipe may come from anywhere, so its size (1 MiB), rules (10,000), patterns (1,000 "
        "characters, and what they compile to) and the steps to match them are bounded. Join patterns "
        "of one type, and repeat less.",
        ".{1000}.{1000}.{1000}.{1000}.{1000} = q8_0",
        ".* = q8_0",
    ),
    "GP010": Page(
        "the file is not plain text",
        "A recipe is UTF-8 with LF or CRLF, without control characters, which could drive your terminal.",
    ),
    "GP011": Page(
        "a directive is misused",
        "It lacks its argument, has a wrong one, or stands twice where it may stand once.",
        "@order bottom",
        "@order last",
    ),
    "GP012": Page(
        "the recipe cannot be found or read",
        "There is no file of this name and no shipped recipe either, or the system refuses to read it.",
    ),
    "GP013": Page(
        "an unknown name in `${...}`",
        "`${NAME}` stands for the text that a `@let NAME = text` above it gives.",
        r"${ATTN}\.weight = q8_0",
        "@let ATTN = attn_(q|k|v|output)\n${ATTN}\\.weight = q8_0",
    ),
    "GP014": Page(
        "a file cannot be drawn in",
        "`@include` and `@base` name files from the folder of the recipe, never outside the folder of "
        "the recipe that was asked for, and never in circles.",
        "@include ../../etc/passwd",
        "@include common/norms.recipe",
    ),
    "GP015": Page(
        "a range of blocks is malformed",
        "Ranges are `{0..46}`, `{1,4,7..9}`, `{first 2}` and `{last 2}`. `{2}` and `{1,3}` are "
        "repetitions, as in every regular expression; write one or two single blocks as `7` and "
        "`(1|3)`.",
        r"blk\.{46..0}\.attn_q\.weight = q8_0",
        r"blk\.{0..46}\.attn_q\.weight = q8_0",
    ),
    "GP016": Page(
        "unknown role",
        "The roles are attention, experts.gate, experts.up, experts.down, experts (all three), "
        "shared, dense, embeddings, output, router, norm and nextn; sizes may also be of gpu and cpu.",
        "@role attn = q8_0",
        "@role attention = q8_0",
    ),
    "GP017": Page(
        "nothing uses a name",
        "A `@let` that nothing uses is left over, or its name is misspelt where it was meant.",
        "@let MOE = {1..46}",
        "@let MOE = {1..46}\nblk\\.${MOE}\\.ffn_up_exps\\.weight = q4_K",
    ),
    "GP101": Page(
        "a rule matches no tensor",
        "It is misspelt, written for another model, or for blocks that this one does not have.",
        r"ffn_dwon_exps\.weight = q6_K",
        r"ffn_down_exps\.weight = q6_K",
    ),
    "GP102": Page(
        "a rule never decides",
        "The first rule that matches decides, and rules above take every tensor this one matches. The "
        r"classic: an unanchored `output\.weight` is found in every `attn_output.weight`.",
        "output\\.weight = q8_0\nattn_output\\.weight = iq4_xs",
        "^output\\.weight$ = q8_0\nattn_output\\.weight = iq4_xs",
    ),
    "GP103": Page(
        "a rule loses tensors to rules above",
        "Exceptions above a general rule look just so; this note only says which tensors are concerned.",
        "blk\\.{first 4}\\.ffn_down_exps = q6_K\nffn_down_exps = q4_K",
    ),
    "GP104": Page(
        "a rule is there twice",
        "A rule above matches exactly the same tensors, so this one never decides. If the types "
        "differ, one of the two is not meant.",
        "attn_q\\.weight = q8_0\nattn_q\\.weight$ = q6_K",
        r"attn_q\.weight$ = q6_K",
    ),
    "GP105": Page(
        "a pattern reaches several roles",
        "It ends or begins inside a word, and the names it is found in have different uses: "
        "`ffn_gate` is in the dense gate, in the experts' gate and in the router. Write whole words.",
        "ffn_gate = q4_K",
        r"ffn_gate(_exps|_shexp)?\. = q4_K",
    ),
    "GP106": Page(
        "a dot is not escaped",
        "`.` stands for any character: `blk.1.` is found in `blk.10.`, `blk.11.` and so on. Write "
        r"`\.` for a dot.",
        r"blk.1.ffn_down\.weight = q6_K",
        r"blk\.1\.ffn_down\.weight = q6_K",
    ),
    "GP107": Page(
        "blocks are left out",
        "A list of blocks misses some that its siblings have: one digit is easily lost in "
        "`([1-9]|[1-3][0-9]|4[0-5])`. Ranges such as `{1..46}` are easier to get right.",
        r"blk\.{1..45}\.ffn_up_exps\.weight = q4_K",
        r"blk\.{1..46}\.ffn_up_exps\.weight = q4_K",
    ),
    "GP108": Page(
        "tensors without a rule",
        "They keep the type they have in the source, usually bf16, which is rarely meant.",
        instead="@default q8_0",
    ),
    "GP109": Page(
        "the order of matching decides",
        "Some tensors get another type where the last match wins, as llama.cpp did in 2025. ggplan, "
        "today's llama.cpp and ik_llama.cpp take the first match; `ggplan rules export` writes rules "
        "that do not overlap.",
    ),
    "GP110": Page(
        "llama-quantize lower-cases the pattern",
        r"It turns `\D` into `\d`, which means the opposite. Write the set out.",
        r"blk\.\d+\.\D+_exps\.weight = q4_K",
        r"blk\.\d+\.[^0-9]+_exps\.weight = q4_K",
    ),
    "GP111": Page(
        "digits that are no block number",
        "`[12]` is one digit, 1 or 2, not block 12; `{3}` behind a dot repeats the dot.",
        r"blk\.[12]\.ffn_down_exps\.weight = q6_K",
        r"blk\.12\.ffn_down_exps\.weight = q6_K",
    ),
    "GP201": Page(
        "a shape forbids the type",
        "A row must hold whole blocks of the type, and 1408 weights are no whole blocks of 256. The "
        "engine's fallback table puts another type in its place. Say in the rule which one you want "
        "there.",
        r"ffn_down_exps\.weight = q6_K",
        r"ffn_down_exps\.weight = q6_K | q8_0",
    ),
    "GP202": Page(
        "a protected tensor is passed over",
        "llama-quantize never quantizes norms, biases, vectors and routers, and neither does a rule "
        "with a quantized type: the next rule is tried. If this rule was meant for them, write the "
        "float type they keep.",
        r"ffn_gate_inp\.weight = q8_0",
        r"ffn_gate_inp\.weight = f32",
    ),
    "GP203": Page(
        "a protected tensor is forced",
        "`!` gives a tensor a type that llama-quantize would refuse it. Make sure that your engine "
        "loads the file.",
        r"ffn_gate_inp\.weight = q8_0!",
        r"ffn_gate_inp\.weight = f32",
    ),
    "GP204": Page(
        "the type needs an imatrix",
        "llama-quantize refuses iq1, iq2 and iq3_xxs without an importance matrix: unweighted, they "
        "lose too much.",
    ),
    "GP205": Page(
        "a quantized tensor is quantized again",
        "Each encoding loses. Start from the original weights, or let the tensor keep its type.",
    ),
    "GP206": Page(
        "the imatrix does not know a tensor",
        "It is encoded without importance: check that the imatrix is this model's.",
    ),
    "GP207": Page(
        "the imatrix has no data for some experts",
        "They were never routed to while it was collected, so their columns count alike. Collect it "
        "from more text.",
    ),
    "GP208": Page(
        "ggplan cannot write the type",
        "It knows the type's size, so it can plan with it. Choose one that `ggplan types` shows with "
        "`writes`.",
    ),
    "GP209": Page(
        "the recipe is for another architecture",
        "`@arch` names another than the model's; rules on names may match nothing or the wrong tensors.",
        "@arch glm4",
        "@arch glm4moe",
    ),
    "GP210": Page(
        "the target does not know the type",
        "`@target llama.cpp` promises that llama.cpp loads the file; iq4_k, iq5_ks, q6_0 and others "
        "are ik_llama.cpp's own.",
        "@target llama.cpp\nffn_up_exps\\.weight = iq4_k",
        "@target llama.cpp\nffn_up_exps\\.weight = q4_K",
    ),
    "GP211": Page(
        "the type is wider than the source",
        "More bits than the source has say nothing more: bf16 weights in f32 take twice the bytes and "
        "give the same results.",
        r"attn_q\.weight = f32",
        r"attn_q\.weight = bf16",
    ),
    "GP301": Page(
        "an assertion does not hold",
        "`@assert` says what must be true of the plan: its bpw or size, that no tensor is uncovered, "
        "or one tensor's type.",
        "@assert bpw <= 4.5",
    ),
    "GP302": Page(
        "a test fails",
        "`@test NAME -> TYPE` says which type one tensor must get, with fallbacks. Correct the rules, "
        "or the test.",
        "@test blk.7.ffn_down_exps.weight -> q6_K",
    ),
}

CODES: dict[str, str] = {code: page.title for code, page in PAGES.items()}


def page_text(code: str) -> str:
    """The page of a code as Markdown.

    Raises
    ------
    KeyError
        If there is no such code.
    """
    page = PAGES[code]
    parts = [f"## {code}: {page.title}", page.why]
    if page.example:
        parts.append(f"```text\n{page.example}\n```")
    if page.instead:
        parts.append(f"{'Write' if not page.example else 'Instead'}:\n\n```recipe\n{page.instead}\n```")
    return "\n\n".join(parts) + "\n"
