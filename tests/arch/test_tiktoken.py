"""tiktoken.model: ranks become the tokens and merges of the byte-level BPE that they are."""

import base64
import json
import random
import time
from pathlib import Path

import pytest
from tiny_checkpoints import read_case, write_case, write_tensors

from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError, TokenizerError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.safetensors import read_tensors

VOCAB = 640
NAMED = {"300": {"content": "[BOS]"}, "301": {"content": "[EOS]"}, "302": {"content": "<|im_end|>"}}


def bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes, as its paper's code has them."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + k): b for k, b in enumerate(others)}


def learnt() -> tuple[list[bytes], list[str]]:
    """The 300 tokens of the small tokenizer by rank, as bytes, and its merges."""
    model = json.loads((Path(__file__).parent.parent / "data" / "hf" / "tokenizer.json").read_text())["model"]
    letters = bytes_of_letters()
    by_id = {number: text for text, number in model["vocab"].items()}
    merges = [" ".join(pair) for pair in model["merges"]]
    return [bytes(letters[letter] for letter in by_id[n]) for n in sorted(by_id)], merges


def write_folder(folder: Path, lines: list[bytes] | None = None, vocab: int = VOCAB) -> Path:
    """A tiny DeepSeek-V3, as Kimi K2 is one, with tiktoken.model in place of tokenizer.json."""
    write_case(folder, read_case("deepseek_v3"))
    (folder / "tokenizer.json").unlink()
    for path in folder.glob("*.safetensors"):
        table = {}
        for name, tensor in read_tensors(path).items():
            is_wide = name in ("lm_head.weight", "model.embed_tokens.weight")
            table[name] = (tensor.dtype, [vocab, tensor.shape[1]] if is_wide else list(tensor.shape))
        write_tensors(path, table)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": vocab, "bos_token_id": 300, "eos_token_id": 301}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"added_tokens_decoder": NAMED, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ x }}"}))
    if lines is None:
        lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(learnt()[0])]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def items(model: Model, key: str) -> list:
    value = model.metadata[f"tokenizer.ggml.{key}"]
    return value.decode_items(value.length)


def test_ranks_are_the_tokens_and_merges_they_were_made_of(tmp_path: Path) -> None:
    model = to_gguf(open_checkpoint(write_folder(tmp_path)), pre="kimi-k2")
    tokens, types = items(model, "tokens"), items(model, "token_type")
    letters = bytes_of_letters()
    assert [bytes(letters[letter] for letter in token) for token in tokens[:300]] == learnt()[0]
    assert items(model, "merges") == learnt()[1]
    assert tokens[300:304] == ["[BOS]", "[EOS]", "<|im_end|>", "<|reserved_token_303|>"]
    assert tokens[557:560] == ["<|reserved_token_557|>", "[PAD558]", "[PAD559]"]
    assert types == [1] * 300 + [3] * 258 + [5] * (VOCAB - 558)
    found = {key: value.decode() for key, value in model.metadata.items() if key.endswith("token_id")}
    assert found["tokenizer.ggml.bos_token_id"] == 300
    assert found["tokenizer.ggml.eos_token_id"] == 301
    assert model.metadata["tokenizer.chat_template"].decode() == "{{ x }}"


def test_what_llama_cpp_does_not_know_waits_for_a_name(tmp_path: Path) -> None:
    obstacle = to_gguf(open_checkpoint(write_folder(tmp_path))).obstacle
    assert isinstance(obstacle, TokenizerError)
    assert "--pre" in obstacle.hint


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"!!! 0"], r"tiktoken\.model:1: not a token in base 64"),
        ([b"YQ== 0", b"YQ== 1"], r"tiktoken\.model:2: not a token"),
        ([b"YQ== 0", b"Yg== 0"], "gives two tokens one rank"),
        ([b"YQ== -1"], "not a token"),
        ([b"YQ=="], "not a token"),
        ([base64.b64encode(b"a" * 600) + b" 0"], "not a token"),
        ([], "holds no tokens"),
    ],
)
def test_damaged_files(tmp_path: Path, lines: list[bytes], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        to_gguf(open_checkpoint(write_folder(tmp_path, lines)))


def test_more_tokens_than_the_embedding_has_rows(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a token with the id 557, but the model's vocab_size is 557"):
        to_gguf(open_checkpoint(write_folder(tmp_path, vocab=557)))


def merged_slowly(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """The parts that are left of a token where each step looks at all pairs."""
    parts = [token[k : k + 1] for k in range(len(token))]
    while len(parts) > 2:
        lowest, at = min((ranks.get(parts[k] + parts[k + 1], rank), k) for k in range(len(parts) - 1))
        if lowest >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def shuffled(rng: random.Random, letters: bytes, size: int, longest: int) -> list[bytes]:
    """All bytes, and then tokens of some letters, many of which no two others make."""
    found = {bytes([n]): None for n in range(256)}
    while len(found) < size:
        found[bytes(rng.choices(letters, k=rng.randint(2, longest)))] = None
    return list(found)


def test_merges_are_those_that_the_definition_gives(tmp_path: Path) -> None:
    tokens = shuffled(random.Random(3), b"ab", 380, 9)
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    model = to_gguf(open_checkpoint(write_folder(tmp_path, lines)), pre="kimi-k2")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    slow = [merged_slowly(ranks, token, rank) for token, rank in ranks.items()]
    expected = [" ".join(part.decode() for part in parts) for parts in slow if len(parts) == 2]
    assert len(expected) > 50
    assert items(model, "merges") == expected


def test_long_tokens_take_no_minutes(tmp_path: Path) -> None:
    rng = random.Random(4)
    tokens = shuffled(rng, b"ab", 256 + 24, 4)
    tokens += [bytes(rng.choices(b"ab", k=512)) for _ in range(600)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    folder = write_folder(tmp_path, lines, vocab=1200)
    started = time.process_time()
    to_gguf(open_checkpoint(folder), pre="kimi-k2")
    assert time.process_time() - started < 25  # some 2 s; a minute or more where steps look at all pairs


def test_more_bytes_than_any_vocabulary_has(tmp_path: Path) -> None:
    lines = [base64.b64encode(b"%0512d" % rank) + b" %d" % rank for rank in range(8200)]
    with pytest.raises(CheckpointError, match=r"has tokens of 4,198,400 bytes, more than any vocabulary"):
        to_gguf(open_checkpoint(write_folder(tmp_path, lines, vocab=9000)))
