"""tiktoken.model, the tokenizer file of Kimi K2: byte-level BPE as ranks of byte strings.

A line has a token's bytes in base 64 and its rank, which is its id. Merges follow from the ranks: a token is
made of the two that are left if its bytes are merged with all lower ranks. Behind the ranks come 258 special
tokens, whose texts are in tokenizer_config.json's `added_tokens_decoder`; the others are reserved.

The facts are those of Kimi K2's own tokenizer class and of `DeepseekV2Model.set_vocab` in
`conversion/deepseek.py` of llama.cpp b11434. That class is code in the checkpoint's folder, which is not run.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from ggplan.arch.byte_level import guarded
from ggplan.arch.pretokenizers import recognise_pretokenizer
from ggplan.arch.special_tokens import Json, configured_tokens
from ggplan.arch.vocabulary import CONTROL, NORMAL, UNUSED, Vocabulary
from ggplan.errors import CheckpointError
from ggplan.sources.files import read_whole, shown
from ggplan.sources.huggingface import HfCheckpoint
from ggplan.sources.json_files import SIZE_LIMIT

FILE = "tiktoken.model"
_N_SPECIAL = 258
_LONGEST = 512  # bytes of a token; the longest published has some hundred
_ALL_BYTES = 1 << 22  # of all tokens, to bound the time that merges take; Kimi K2 has 1.2 million
# How Kimi K2 cuts text into words, for the recognition alone; && is an intersection of classes.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_WORDS = "|".join((
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip


def tiktoken_vocabulary(
    checkpoint: HfCheckpoint, settings: Json, vocab_size: int, pre: str | None
) -> Vocabulary:
    """The vocabulary of tiktoken.model, with as many tokens as the embedding has rows.

    Raises
    ------
    CheckpointError
        If it is damaged, or has more tokens than the embedding rows.
    """
    path = checkpoint.path / FILE
    where = shown(path)
    ranks = _read_ranks(read_whole(path, SIZE_LIMIT), where)
    letters = _letters()
    texts = {rank: _in_letters(token, letters) for token, rank in ranks.items()}
    special = _special_tokens(configured_tokens(checkpoint, settings), len(ranks))
    if (most := max((*texts, *special.values()))) >= vocab_size:
        raise CheckpointError(
            f"{where} has a token with the id {most}, but the model's vocab_size is {vocab_size}",
            hint="the tokenizer may belong to another model",
        )
    pairs = [pair for token, rank in ranks.items() if (pair := _merged(ranks, token, rank)) is not None]
    merges = [" ".join(_in_letters(part, letters) for part in pair) for pair in pairs]
    by_id = {**texts, **{number: text for text, number in special.items()}}
    reserved = set(special.values())
    kinds = {number: CONTROL if number in reserved else NORMAL for number in by_id}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    types = [kinds.get(number, UNUSED) for number in range(vocab_size)]
    name = pre
    if name is None:
        with guarded(where):
            name = _recognised(texts, merges, special)
    return Vocabulary("gpt2", name, tokens, types, merges=merges, added=special, file=FILE)


def _read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """The rank of each token, in the order of the file."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error:
            token = b""
        if not token or len(token) > _LONGEST or not rank.isdigit() or len(rank) > 9 or token in ranks:
            raise CheckpointError(f"{where}:{number}: not a token in base 64 and its rank, each once")
        ranks[token] = int(rank)
    if (n_bytes := sum(map(len, ranks))) > _ALL_BYTES:
        raise CheckpointError(f"{where} has tokens of {n_bytes:,} bytes, more than any vocabulary")
    if len(set(ranks.values())) != len(ranks):
        raise CheckpointError(f"{where} gives two tokens one rank")
    if not ranks:
        raise CheckpointError(f"{where} holds no tokens")
    return ranks


def _special_tokens(named: Mapping[int, Json], first: int) -> dict[str, int]:
    """The special tokens by text: those that are named, and the reserved ones."""
    found = {}
    for number in range(first, first + _N_SPECIAL):
        text = named.get(number, {}).get("content")
        found[text if isinstance(text, str) and text else f"<|reserved_token_{number}|>"] = number
    return found


def _merged(ranks: Mapping[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes] | None:
    """The two tokens of which one is made; None for a byte, and for one that no two make."""
    ends = [*range(1, len(token) + 1)]  # of the part that begins at an index; 0 for none
    n_parts = len(token)
    lowest_first: list[tuple[int, int, int, int]] = []

    def push(start: int, middle: int, end: int) -> None:
        found = ranks.get(token[start:end], rank)
        if found < rank:
            heappush(lowest_first, (found, start, middle, end))

    for start in range(len(token) - 1):
        push(start, start + 1, start + 2)
    starts = [-1, *range(len(token))]  # of the part that ends at an index
    while n_parts > 2:
        if not lowest_first:
            return None
        _, start, middle, end = heappop(lowest_first)
        if ends[start] != middle or ends[middle] != end:  # one of the two was merged before
            continue
        ends[start], ends[middle], starts[end] = end, 0, start
        n_parts -= 1
        if start:
            push(starts[start], start, end)
        if end < len(token):
            push(start, end, ends[end])
    return (token[: ends[0]], token[ends[0] :]) if n_parts == 2 else None


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: printable ones for themselves, others above."""
    shown_as_they_are = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown_as_they_are else chr(next(others)) for byte in range(256)]


def _in_letters(token: Iterable[int], letters: list[str]) -> str:
    return "".join(letters[byte] for byte in token)


def _recognised(texts: Mapping[int, str], merges: list[str], special: Mapping[str, int]) -> str | None:
    """llama.cpp's name for it, by the tokens of the fixed text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = [(a, b) for a, _, b in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in texts.items()}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return recognise_pretokenizer(tokenizer, {})
