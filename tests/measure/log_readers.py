"""The one run in a log, as the tests of formats ask for it."""

from ggplan.errors import MeasureError
from ggplan.measure.logs import read_log
from ggplan.measure.perplexity_logs import PerplexityRun
from ggplan.measure.record import SWEEP_ENGINE, Speed


def parse_perplexity_log(text: str) -> PerplexityRun:
    """The run in a log of llama-perplexity."""
    log = read_log(text)
    found = [run.quality for run in log.runs if run.quality is not None]
    if len(found) == 1:
        return found[0]
    raise MeasureError(f"the log has {len(found)} runs" if found else log.left_out[0].why)


def parse_sweep_bench(text: str) -> list[Speed]:
    """The rows of all llama-sweep-bench runs in a text."""
    return [s for run in read_log(text).runs for s in run.speeds if s.engine == SWEEP_ENGINE]
