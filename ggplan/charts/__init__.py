"""Charts of records: what each quantization costs and what it loses, drawn the same way every time.

    save(draw_quality(load_points(records)), "chart.svg")

The same records give the same bytes: no dates, no random ids, text as text.
"""
