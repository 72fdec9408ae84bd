"""A vocabulary as llama.cpp has it, whatever kind of tokenizer it comes from.

Each token has a type: 1 normal, 2 unknown (what a text that has no token becomes), 3 control (never shown,
never typed), 4 user-defined (found in text before merging), 5 unused, 6 byte (for text that has no token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ggplan.metadata import Metadata, MetadataType, array, string

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes
    ----------
    model
        llama.cpp's name of the kind: "gpt2" for byte-level BPE, "llama" for sentencepiece,
        "gemma4" for sentencepiece's BPE with merges.
    pre
        Its name of the pre-tokenizer; None if it knows none like this, "" for a kind that needs none.
    tokens, types, scores
        The text, the type and, for sentencepiece, the score of each id.
    merges
        Two tokens with a space between, the first to merge first; for byte-level BPE.
    added
        The ids of the tokens that were added to those learnt, by their text.
    notes
        What was left out.
    file
        The file of the folder that it is from.
    """

    model: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    added: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    file: str = "tokenizer.json"

    @property
    def is_scored(self) -> bool:
        """Whether it is of sentencepiece's kind."""
        return self.model == "llama"

    def metadata(self) -> Metadata:
        """Its keys, in the converter's order."""
        keys: Metadata = {"tokenizer.ggml.model": string(self.model)}
        if self.pre:
            keys["tokenizer.ggml.pre"] = string(self.pre)
        keys["tokenizer.ggml.tokens"] = array(MetadataType.STRING, list(self.tokens))
        if self.scores:
            keys["tokenizer.ggml.scores"] = array(MetadataType.FLOAT32, list(self.scores))
        keys["tokenizer.ggml.token_type"] = array(MetadataType.INT32, list(self.types))
        if self.merges:
            keys["tokenizer.ggml.merges"] = array(MetadataType.STRING, list(self.merges))
        return keys


def looks_special(text: str) -> bool:
    """Whether a token must be a control token whatever its flags say; some models forget the flag."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    known = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return text in known or any(text.startswith(a) and text.endswith(b) for a, b in brackets)
