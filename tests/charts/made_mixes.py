"""Records made up for the tests of charts."""

from ggplan.measure import Base, Measurement, Metric, Quantization, Record
from ggplan.measure.record import FileFacts, ModelFacts, Part, Speed, Text


def quantization(
    name: str, gib: float, kld: float | None, use: str = "", **conditions: object
) -> Quantization:
    metrics = {"ppl": Metric(20 + 10 * (kld or 0), 0.5, "unpaired chunks")}
    if kld is not None:
        metrics["kld"] = Metric(kld, kld / 20, "paired chunks")
        metrics["delta_ln_ppl"] = Metric(kld - 0.01, 0.004, "paired chunks")
    facts: dict = {
        "n_ctx": 512,
        "n_chunks": 10,
        "n_tokens": 2550,
        "engine": "llama-perplexity",
        "base": Base("bf16"),
    }
    measurement = Measurement(
        text=Text(f"{use or 'a'}.txt"), metrics=metrics, use=use, date="2026-01-02", **(facts | conditions)
    )
    n_bytes = int(gib * 2**30)
    parts = (
        Part("routed experts", "q4_K", n_bytes // 2, 10**9),
        Part("attention", "q8_0", n_bytes // 4, 10**8),
    )
    speeds = (Speed(0, 900.0, 90 / gib), Speed(8192, 500.0, 60 / gib))
    return Quantization(
        name,
        FileFacts(f"{name}.gguf", name, n_bytes),
        gib,
        parts=parts,
        measurements=(measurement,),
        speeds=speeds,
    )


def record(*quantizations: Quantization) -> Record:
    return Record(ModelFacts("Air", "glm4moe", 8 * 2**30), quantizations)


MIXES = record(
    quantization("bf16", 16, None),
    quantization("q8_0", 8.5, 0.001),
    quantization("q6_K", 6.6, 0.004),
    quantization("hq4_k", 6.2, 0.0038),
    quantization("q4_K", 4.5, 0.03),
    quantization("q4_0", 4.6, 0.05),
    quantization("q2_K", 2.6, 0.4),
)
