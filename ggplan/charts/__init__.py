"""Charts: what each quantization loses against what it costs, where its bytes are, its types, its speed.

    record = ggplan.measure.load_record("air.json")
    draw_quality(record)                                # a notebook shows it
    draw_quality(record, x="bpw").save("air.svg")       # or .png, or .html with the numbers
    draw_parts(ggplan.open_model("air-hq4_k.gguf"))     # where the GiB are: of records, models and plans
    draw_types(ggplan.make_plan(model, "glm4moe/hq4_k"))
    draw_context(record)                                # tokens per second as the cache fills
    draw_frontier(ggplan.pareto(model), published=...)  # the best files of all sizes, as predicted
    draw_fit({"q8_0": ggplan.place(plan, machine)})     # bytes by device, and tokens per second

The same input gives the same bytes: no dates, no random ids, text as text.
"""

from ggplan.charts.context import draw_context
from ggplan.charts.damage import FileDamage, TensorDamage, draw_damage
from ggplan.charts.fit import draw_fit
from ggplan.charts.output import Drawing
from ggplan.charts.parts import draw_parts
from ggplan.charts.predictions import Published, draw_frontier
from ggplan.charts.quality import draw_quality
from ggplan.charts.types_map import draw_types

__all__ = [
    "Drawing", "FileDamage", "Published", "TensorDamage", "draw_context", "draw_damage", "draw_fit",
    "draw_frontier", "draw_parts", "draw_quality", "draw_types",
]  # fmt: skip
