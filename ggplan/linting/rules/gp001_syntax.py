r"""Errors in the text of a recipe. The parser (`ggplan.rules`) finds, words and mends them.

GP001: a rule has no `=`
    A line is a rule `PATTERN = TYPE`, a directive that begins with `@`, or a comment that begins with
    `#`.
    - attn_q\.weight q8_0
    + attn_q\.weight = q8_0

GP002: unknown tensor type
    A type is a name of ggml (`ggplan types` lists them), in any case. `Q4_K_M` is llama.cpp's name of a
    mix of several types, and `q8_K` a type of intermediate results that no file can hold.
    - ffn_up_exps\.weight = Q4_K_M
    + ffn_up_exps\.weight = q4_K

GP003: the pattern is not a regular expression
    A bracket is never closed, or a repetition repeats nothing. A bracket that is meant as a character
    needs a backslash.
    - attn_[qk\.weight = q8_0
    + attn_[qk]\.weight = q8_0

GP004: the pattern is not portable
    A pattern may hold only what RE2, llama.cpp (`std::regex`) and Python read the same way: no
    look-around, no back-references, no inline flags, no characters beyond ASCII. List what shall match,
    and put exceptions into a rule above.
    - blk\.(?!0\.)\d+\.ffn_down\.weight = q6_K
    + blk\.{1..46}\.ffn_down\.weight = q6_K

GP006: unknown directive
    A line that begins with `@` is a directive; a misspelt one would silently do nothing.
    - @defualt q8_0
    + @default q8_0

GP007: a pattern or a type is missing
    A rule needs both sides of `=`, and a type on both sides of each `|`.
    - ffn_down_exps\.weight = q6_K |
    + ffn_down_exps\.weight = q6_K | q8_0

GP008: the line is not as it was meant
    A forum, a chat or a word processor has changed it: quotes, marks of lists, blanks that do not break,
    characters that only look like those of the keyboard; or it was copied with a piece of the page or the
    script around it. No tensor name holds such characters.
    - * "attn_q\.weight" = "q8_0",
    + attn_q\.weight = q8_0

GP009: a limit is exceeded
    A recipe may come from anywhere, so its size (1 MiB), rules (10,000), patterns (1,000 characters,
    and what they compile to) and the steps to match them are bounded. Join patterns of one type, and
    repeat less.
    - .{1000}.{1000}.{1000}.{1000}.{1000} = q8_0
    + .* = q8_0

GP010: the file is not plain text
    A recipe is UTF-8 with LF or CRLF, without control characters, which could drive your terminal.

GP011: a directive is misused
    It lacks its argument, has a wrong one, or stands twice where it may stand once.
    - @order bottom
    + @order last

GP012: the recipe cannot be found or read
    There is no file of this name and no shipped recipe either, or the system refuses to read it.

GP013: an unknown name in `${...}`
    `${NAME}` stands for the text that a `@let NAME = text` above it gives.
    - ${ATTN}\.weight = q8_0
    + @let ATTN = attn_(q|k|v|output)
    + ${ATTN}\.weight = q8_0

GP014: a file cannot be drawn in
    `@include` and `@base` name files from the folder of the recipe, never outside the folder of the
    recipe that was asked for, and never in circles.
    - @include ../../etc/passwd
    + @include common/norms.recipe

GP015: a range of blocks is malformed
    Ranges are `{0..46}`, `{1,4,7..9}`, `{first 2}` and `{last 2}`. `{2}` and `{1,3}` are repetitions,
    as in every regular expression; write one or two single blocks as `7` and `(1|3)`.
    - blk\.{46..0}\.attn_q\.weight = q8_0
    + blk\.{0..46}\.attn_q\.weight = q8_0

GP016: unknown role
    The roles are attention, experts.gate, experts.up, experts.down, experts (all three), shared, dense,
    embeddings, output, router, norm and nextn; sizes may also be of gpu and cpu.
    - @role attn = q8_0
    + @role attention = q8_0
"""

from __future__ import annotations

from ggplan.linting.rule import LintRule

GP001 = LintRule("GP001", "error")
GP002 = LintRule("GP002", "error")
GP003 = LintRule("GP003", "error")
GP004 = LintRule("GP004", "error")
GP006 = LintRule("GP006", "error")
GP007 = LintRule("GP007", "error")
GP008 = LintRule("GP008", "error")
GP009 = LintRule("GP009", "error")
GP010 = LintRule("GP010", "error")
GP011 = LintRule("GP011", "error")
GP012 = LintRule("GP012", "error")
GP013 = LintRule("GP013", "error")
GP014 = LintRule("GP014", "error")
GP015 = LintRule("GP015", "error")
GP016 = LintRule("GP016", "error")
