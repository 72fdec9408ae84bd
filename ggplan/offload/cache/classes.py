"""Which architecture keeps what: the kinds of memory, by `general.architecture`.

An architecture that llama.cpp b11434 knows and that is not listed here has plain attention, or windows where
its metadata says so. One that the engine does not know is reckoned in the same way, and said to be a guess.

Source: llama.cpp b11434, `src/llama-model.cpp` (create_memory) and `src/llama-arch.cpp` (LLM_ARCH_NAMES).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ggplan.offload.cache.attention import draft, none, plain
from ggplan.offload.cache.compressed import compressed
from ggplan.offload.cache.indexed import sparse_grouped, sparse_hybrid, sparse_latent
from ggplan.offload.cache.recurrent import hybrid, recurrent
from ggplan.offload.cache.tensors import CacheTensor
from ggplan.offload.cache.window import windowed
from ggplan.offload.dimensions import HYBRID, RECURRENT, Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings

MemoryClass = Callable[[Dimensions, Settings, Holding], Iterator[CacheTensor]]

_WITHOUT = (
    "bert", "dream", "eurobert", "gemma-embedding", "gemma4-assistant", "jina-bert-v2", "jina-bert-v3",
    "llada", "llada-moe", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
    "wavtokenizer-dec",
)  # fmt: skip
_CLASSES: dict[str, MemoryClass] = {
    **dict.fromkeys(_WITHOUT, none),
    **dict.fromkeys(RECURRENT, recurrent),
    **dict.fromkeys(HYBRID, hybrid),
    **dict.fromkeys(("deepseek32", "dots3note", "glm-dsa", "hy_v4"), sparse_latent),
    **dict.fromkeys(("glm5-next", "qwen4exp"), sparse_hybrid),
    "minimax-m3": sparse_grouped,
    "deepseek4": compressed,
}
_PLAIN = frozenset({
    "afmoe", "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom",
    "chameleon", "chatglm", "codeshell", "cogvlm", "cohere2", "cohere2moe", "command-r", "dbrx", "deci",
    "deepseek", "deepseek2", "deepseek2-ocr", "dflash", "dots1", "eagle3", "ernie4_5", "ernie4_5-moe",
    "exaone", "exaone-moe", "exaone4", "falcon", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "glm4",
    "glm4moe", "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granite_swa", "granitemoe", "graniteswitch",
    "grok", "grovemoe", "hrm_text", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "internlm2",
    "jais", "jais2", "laguna", "llama", "llama-embed", "llama4", "maincoder", "maple", "mellum", "mimo2",
    "minicpm", "minicpm3", "minimax-m2", "mistral3", "mistral4", "mpt", "muse-glimmer", "nanbeige",
    "nemotron", "olmo", "olmo2", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3",
    "phimoe", "plamo", "plamo3", "plm", "pockettts", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen3moe", "qwen3tts", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smallthinker", "smollm3",
    "spark2_5", "stablelm", "starcoder", "starcoder2", "step35", "t5", "t5encoder", "talkie", "xverse",
})  # fmt: skip


def is_known(architecture: str) -> bool:
    """Whether the kind of memory of an architecture is known, and not guessed."""
    return architecture in _CLASSES or architecture in _PLAIN


def cache_tensors(dimensions: Dimensions, settings: Settings, holding: Holding) -> list[CacheTensor]:
    """The tensors of the main context."""
    kind = _CLASSES.get(dimensions.architecture, windowed if any(dimensions.slides) else plain)
    return list(kind(dimensions, settings, holding))


def draft_tensors(dimensions: Dimensions, settings: Settings, holding: Holding) -> list[CacheTensor]:
    """The tensors of the draft context of multi-token prediction."""
    return list(draft(dimensions, settings, holding))
