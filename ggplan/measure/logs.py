"""The runs in a text: logs of llama.cpp's own tools, model cards, and whatever a script put together.

A text may hold many runs: logs one after another, tables below headings, a log that was cut short before the
next began. It is read once, line by line. A run takes the lines that continue it; a line that cannot be its
next ends it, and what stands before a run (`log_lines`) begins the next. So figures of two runs never meet in
one. Runs without a result are listed with their line, never passed over.

All patterns are linear, and searched for line by line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ggplan.measure import perplexity_logs as perplexity
from ggplan.measure import speed_logs as speeds
from ggplan.measure.bench_files import machine_tests
from ggplan.measure.log_lines import (
    BENCH,
    NO_FACTS,
    PERPLEXITY,
    SWEEP,
    Facts,
    FactsBefore,
    Line,
    Stage,
    bench_build,
    contradict,
    facts_in,
    is_failure,
    lines_of,
)
from ggplan.measure.log_runs import LeftOut, Log, Run, bench_results, of_models
from ggplan.measure.perplexity_logs import OpenPerplexity
from ggplan.measure.process_steps import Steps, step_in
from ggplan.measure.speed_logs import OpenBench, OpenSweep
from ggplan.measure.table_rows import (
    NoFigure,
    columns_of,
    published_row,
    unread_cell,
    unread_table,
    unread_words,
    with_forms,
)
from ggplan.text import printable

_Open = OpenPerplexity | OpenSweep | OpenBench


def read_log(text: str) -> Log:
    """The runs in a text; a text with none has none.

    Raises
    ------
    MeasureError
        If a test of llama-bench is not numbers; the message has the line.
    """
    machine = machine_tests(text)
    scanner = _Scanner()
    for line in lines_of(machine.rest):
        scanner.read(line)
    scanner.left_out += machine.left_out
    scanner.close()
    for group in machine.groups:
        runs, left_out = bench_results(group, "", 0, NO_FACTS)
        scanner.runs += [replace(run, line=group[0].line) for run in runs]
        scanner.left_out += left_out
    return scanner.finished()


@dataclass(slots=True)
class _Scanner:
    """The state between two lines.

    `before` has the facts since the last process began; `claimed` says whether they are a run's already,
    `has_result` whether a heading has one below it; `steps` tell how far the process has come.
    `headings`, `heading` and `rows` are of a table that may be one of results; `others` is
    what is told only where the text has results: tables of other figures, headings without any.
    """

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    before: FactsBefore = field(default_factory=FactsBefore)
    claimed: bool = False
    has_result: bool = False
    steps: Steps = field(default_factory=Steps)
    open: _Open | None = None
    time: int = 0
    fenced: bool = False
    is_strided: bool = False
    headings: tuple[str, ...] = ()
    heading: int = 0
    rows: list[tuple[Line, tuple[str, ...]]] = field(default_factory=list)
    others: list[LeftOut] = field(default_factory=list)
    is_stray: bool = False
    row: tuple[str, ...] = ()
    is_of_llama_cpp: bool = False

    def read(self, line: Line) -> None:
        """Take the next line."""
        if line.time is not None:
            if line.time < self.time:
                self.new_process()
            self.time = line.time
        text = line.text
        self.process(line)
        if text.startswith("```"):
            self.fenced = not self.fenced
        if isinstance(self.open, OpenSweep) and speeds.is_ellipsis(text.strip()):
            self.open.is_shortened = True
            return
        if "|" in text:
            stripped = text.strip()
            if stripped.startswith("|") and stripped.endswith("|") and len(stripped) > 1:
                self.table_row(line, stripped)
                return
            if stripped.startswith("|") and self.without_end(line, stripped):
                return
        if self.headings:
            self.end_table()
        if not text or text.isspace():
            return
        if text.startswith("[") and perplexity.is_chunks(text):
            self.perplexity(line)
            return
        told = facts_in(text, fenced=self.fenced)
        if told is not None:
            self.fact(*told, line)
            if "Final estimate" in text and perplexity.FINAL.search(text):
                self.perplexity(line)
            return
        if is_failure(text):
            self.failure()
            return
        if build := bench_build(text):
            if isinstance(self.open, OpenBench):
                self.open.build = build
            return
        if text.startswith("{"):
            if (item := speeds.json_line(text)) is not None:
                self.json_item(line, item)
                return
            if speeds.is_cut_json(text):
                self.leave_out(line.number, "a JSON line of a benchmark that is cut short")
                return
        if self.open is None and self.before.facts.name and not self.claimed and not self.fenced:
            line = perplexity.card_result(line) or line
        self.perplexity(line)

    def process(self, line: Line) -> None:
        """Tell by a line of llama.cpp that another process began."""
        is_timed, step = line.time is not None, step_in(line.text)
        is_log = not self.fenced and (is_timed or bool(step))
        if (is_timed and not self.claimed and self.before.is_otherwise_timed(is_timed=True)) or (
            is_log and self.has_result and self.open is None
        ):
            self.new_process()
            self.time = line.time or 0
        if not self.steps.take(line.text, step):
            self.new_process()
            self.time = line.time or 0
            self.steps.take(line.text, step)

    def fact(self, stage: Stage, facts: Facts, line: Line) -> None:
        """Take a fact, which may begin the next run."""
        known = self.before
        unnamed = stage is Stage.HEADING and not facts.name
        if unnamed and self.open is not None and not isinstance(self.open, OpenBench):
            return  # a remark within a log
        if unnamed and known.facts.name and facts.level > known.facts.level > 0:
            return  # a part of what the heading above names
        if stage is Stage.BELOW_HEADING and known.stage is not Stage.HEADING:
            return  # a size that is of nothing
        self.is_of_llama_cpp = self.is_of_llama_cpp or stage >= Stage.BUILD
        again = stage == known.stage and stage is not Stage.MODEL
        again = again and (stage is Stage.HEADING or contradict(known.facts, facts))
        again = again or (stage > Stage.HEADING and known.is_another_file(facts))
        again = again or (stage >= Stage.BUILD and known.is_otherwise_timed(is_timed=line.time is not None))
        if stage is Stage.FILE:
            self.steps = Steps()
        if self.claimed or self.open is not None or stage < known.stage or again:
            self.new_process(facts.file if stage > Stage.HEADING else "")
        self.before.add(stage, facts, line, fenced=self.fenced)

    def new_process(self, opened: str = "") -> None:
        """End the run, and forget what stood before it; `opened` is the file of the next."""
        self.close()
        self.forget(Stage.NOTHING, opened)
        self.claimed = False
        self.is_strided, self.is_stray, self.time, self.row = False, False, 0, ()
        self.has_result, self.steps = False, Steps()

    def failure(self) -> None:
        """End a process that says itself that it failed; a heading above it still counts."""
        self.close()
        self.forget(Stage.COMMAND)

    def forget(self, first: Stage, opened: str = "") -> None:
        """Forget facts from a place in their order on, and list those that no result is of."""
        if not self.claimed:
            found = self.before.without_result(first, opened)
            for line, why in found:
                self.leave_out(line, why)
            if first is Stage.NOTHING and not found and not self.has_result:
                self.others += [LeftOut(*told) for told in self.before.without_figure()]
        self.before.forget(first)

    def perplexity(self, line: Line) -> None:
        """Take a line that may be of llama-perplexity, or the start of a sweep."""
        text = line.text
        if "strided perplexity" in text:
            self.is_strided = True
        program = PERPLEXITY if perplexity.is_start(text) else SWEEP if speeds.is_start(text) else ""
        if program:
            self.without_cut(line)
            self.without_others(program)
            facts = self.own_facts()
            if program == SWEEP:
                self.begin(speeds.sweep_at(text, line.number, facts))
            else:
                self.begin(perplexity.start_of(line, facts, is_strided=self.is_strided))
            return
        if other := perplexity.other_score(text):
            self.begin(None)
            self.leave_out(line.number, f"a run of {other}, which records do not keep")
            return
        if isinstance(self.open, OpenPerplexity):
            if not perplexity.feed(self.open, line):
                self.close()
            elif self.open.is_done:
                self.close()
                return
            else:
                return
        if perplexity.is_result(text):
            self.headless(line)
        elif perplexity.is_stray(line):
            self.row = perplexity.row_of(line)
            self.stray(line, "lines of a result whose beginning is missing")

    def without_cut(self, line: Line) -> None:
        """Forget, where a run starts, what a process printed that cannot have come so far."""
        is_other = self.before.is_otherwise_timed(is_timed=line.time is not None)
        if not self.claimed and (is_other or self.steps.lacks_context()):
            self.forget(Stage.NOTHING)

    def without_others(self, program: str) -> None:
        """Forget, where a result of a program begins, what stands before it and is of another one."""
        if not self.claimed and self.before.is_of_another_program(program):
            self.forget(Stage.NOTHING)

    def headless(self, line: Line) -> None:
        """Begin a run with its result: a card has no more than that, a log lost its beginning."""
        self.without_others(PERPLEXITY)
        run = OpenPerplexity(line.number, NO_FACTS, row=self.row)
        if not perplexity.feed(run, line):
            self.stray(line, "lines of a result whose beginning is missing")
            return
        run.facts = self.facts_without_start(is_torn=run.is_torn)
        self.begin(run, keeps_facts=True)
        if run.is_done:
            self.close()

    def own_facts(self) -> Facts:
        """The facts for a run that begins here; those before another run's start are that run's."""
        return NO_FACTS if self.claimed else self.before.facts

    def facts_without_start(self, *, is_torn: bool = False) -> Facts:
        """The facts for a result whose start is not there, as on a card.

        What llama.cpp printed above it may be of a run that was cut short, and then so may be the heading
        above that; `is_torn` says that the result itself is the rest of a log.
        """
        if not self.claimed:
            self.forget(Stage.NOTHING if is_torn or self.before.is_of_a_process() else Stage.BUILD)
        return self.own_facts()

    def begin(self, run: _Open | None, *, keeps_facts: bool = False) -> None:
        """End the run before, and begin this one.

        With `keeps_facts` a heading before it also counts for further results below it.
        """
        self.close()
        self.open = run
        self.is_stray, self.row = False, ()
        if not keeps_facts or self.before.stage > Stage.BELOW_HEADING:
            self.claimed = True
        self.has_result = keeps_facts

    def close(self) -> None:
        """End the run, which is kept if it has a result."""
        run, self.open = self.open, None
        if run is None:
            return
        if why := run.unfinished():
            self.leave_out(run.line, why)
            return
        if isinstance(run, OpenPerplexity):
            is_log = run.started or run.chunk > 0
            self.runs.append(Run(run.line, run.facts, quality=run.result(), is_log=is_log))
        elif isinstance(run, OpenSweep):
            self.runs.append(Run(run.line, run.facts, speeds=tuple(run.speeds)))
        else:
            runs, left_out = bench_results(run.tests, run.build, run.line, speeds.facts_of_bench(run))
            self.runs += runs
            self.left_out += left_out

    def leave_out(self, line: int, why: str) -> None:
        """List what is not kept."""
        self.left_out.append(LeftOut(line, why))

    def stray(self, line: Line, why: str) -> None:
        """List lines of a run that is not open, once."""
        if not self.is_stray:
            self.leave_out(line.number, why)
        self.is_stray = True

    def json_item(self, line: Line, item: Mapping[str, object]) -> None:
        """Take a JSON line of a benchmark."""
        if "n_kv" in item and "speed_pp" in item:
            self.sweep_row(line, item, ())
        elif "avg_ts" in item:
            try:
                test = speeds.bench_item(item, line.number)
            except ValueError as error:
                raise speeds.not_numbers(line.number, error) from None
            if test is None:
                self.leave_out(line.number, "a test of llama-bench without a rate")
                return
            if not isinstance(self.open, OpenBench) or self.open.headings:
                self.without_others(BENCH)
                self.begin(OpenBench(line.number, self.facts_without_start()), keeps_facts=True)
            assert isinstance(self.open, OpenBench)
            self.open.tests.append(test)

    def table_row(self, line: Line, row: str) -> None:
        """Take a row of a markdown table."""
        cells = _cells_of(row)
        if not row.strip("|-: "):
            return
        if self.headings and len(cells) != len(self.headings):
            self.end_table()
        if speeds.is_sweep(cells):
            if not (isinstance(self.open, OpenSweep) and not self.open.headings and not self.open.speeds):
                self.without_others(SWEEP)
                self.begin(OpenSweep(line.number, self.facts_without_start()), keeps_facts=True)
            assert isinstance(self.open, OpenSweep)
            self.open.headings = cells
            if "B" in cells:
                self.open.wrong = (
                    "a table of llama-batched-bench, whose speeds are of several sequences at once"
                )
        elif speeds.is_bench(cells):
            self.without_others(BENCH)
            self.begin(OpenBench(line.number, self.facts_without_start(), cells), keeps_facts=True)
        elif isinstance(self.open, OpenSweep | OpenBench) and self.takes(self.open, line, cells):
            return
        elif self.headings:
            self.rows.append((line, cells))
        elif speeds.has_sweep_cells(cells):
            self.stray(line, "rows of a sweep whose beginning is missing")
        else:
            self.headings, self.heading = cells, line.number

    def without_end(self, line: Line, row: str) -> bool:
        """Take a row without a `|` at its end: the tools print one, markdown need not have it."""
        cells = _cells_of(row)
        if isinstance(self.open, OpenSweep | OpenBench) and self.open.headings:
            is_row = len(cells) == len(self.open.headings) or speeds.is_cut_row(self.open, cells)
            if is_row:
                self.cut_row(line)
            return is_row
        if self.headings and line.is_open:
            self.leave_out(line.number, "a row of a table that is cut short")
            return True
        if self.headings and len(cells) == len(self.headings):
            self.table_row(line, row)
            return True
        return False

    def cut_row(self, line: Line) -> None:
        """List a row of a benchmark that is cut; a sweep cannot go on after it."""
        self.leave_out(line.number, "a row of a benchmark that is cut short")
        if isinstance(self.open, OpenSweep):
            self.close()

    def takes(self, run: OpenSweep | OpenBench, line: Line, cells: tuple[str, ...]) -> bool:
        """Whether a row is of an open benchmark."""
        if isinstance(run, OpenSweep) and not run.headings and speeds.has_sweep_cells(cells):
            run.headings = speeds.SWEEP_HEADINGS  # lost on the way, by a search for numbers
        if speeds.is_cut_row(run, cells):
            self.cut_row(line)
            return True
        if len(cells) != len(run.headings):
            return False
        named = dict(zip(run.headings, cells, strict=True))
        if isinstance(run, OpenSweep):
            self.sweep_row(line, named, run.headings)
            return True
        if not speeds.is_bench_row(named):
            return False
        test = speeds.bench_test(named, line.number)
        if test is not None:
            run.tests.append(test)
        else:
            self.leave_out(line.number, f"the test {printable(named['test'])} has no rate")
        return True

    def sweep_row(self, line: Line, cells: Mapping[str, object], headings: tuple[str, ...]) -> None:
        """Take a row of a sweep: the next of the open run, or the first of another."""
        row = speeds.sweep_row(cells)
        if row is None:
            self.leave_out(line.number, "a row of a sweep that is not numbers")
            return
        run = self.open
        if isinstance(run, OpenSweep) and (run.wrong or speeds.continues(run, row)):
            speeds.take(run, row)
            return
        if row.speed.n_kv == 0 or (not isinstance(run, OpenSweep) and not headings and not self.is_stray):
            # The JSON lines of a sweep have no other start than their first.
            self.without_others(SWEEP)
            is_start = row.speed.n_kv == 0 and not headings and "n_kv" in cells
            facts = self.own_facts() if is_start else self.facts_without_start(is_torn=row.speed.n_kv > 0)
            self.begin(OpenSweep(line.number, facts, headings), keeps_facts=not is_start)
            assert isinstance(self.open, OpenSweep)
            speeds.take(self.open, row)
            return
        at = (
            f", N_KV {run.speeds[-1].n_kv:,} is followed by {row.speed.n_kv:,}"
            if isinstance(run, OpenSweep) and run.speeds
            else ""
        )
        self.close()
        self.open = OpenSweep(line.number, NO_FACTS, headings, row.n_prompt, row.n_written)
        self.open.wrong = f"rows of a sweep whose beginning is missing{at}"
        self.claimed = True
        speeds.take(self.open, row)

    def end_table(self) -> None:
        """Take the rows of a table of results; other tables are of no concern."""
        headings, rows, self.headings, self.rows = self.headings, self.rows, (), []
        columns = columns_of(headings) if rows else None
        if columns is None:
            if rows and (why := unread_table(headings)):
                self.others.append(LeftOut(self.heading, why))
            return
        self.close()
        if columns.unread:
            self.leave_out(self.heading, unread_words(columns.unread))
        columns = with_forms(columns, headings, [cells for _, cells in rows])
        for line, cells in rows:
            found = published_row(columns, cells)
            if isinstance(found, NoFigure):
                self.leave_out(line.number, found.why)
                continue
            if told := unread_cell(columns, cells):
                self.leave_out(line.number, told)
            own = cells[columns.places["model"]] if "model" in columns.places else ""
            facts = Facts(model=own or self.before.facts.model, heading=self.before.facts.heading)
            self.runs.append(Run(line.number, facts, row=found, name=found.name))
            self.has_result = True

    def finished(self) -> Log:
        """All runs, after the last line."""
        if self.headings:
            self.end_table()
        self.close()
        if self.runs or self.left_out:
            self.forget(Stage.NOTHING)
        runs = of_models(self.runs)
        left_out = self.left_out + (self.others if runs else [])
        if any(run.facts.name or run.row for run in runs):
            # A card: what stands below a heading of another kind is of no file.
            stray = [
                run
                for run in runs
                if run.row is None and run.facts.heading and not run.facts.name and not run.facts.file
            ]
            runs = [run for run in runs if run not in stray]
            left_out = left_out + [
                LeftOut(
                    run.line,
                    f"a result below the heading {printable(run.facts.heading)!r}, which names no file",
                )
                for run in stray
            ]
        return Log(tuple(runs), tuple(sorted(left_out, key=lambda left: left.line)), self.is_of_llama_cpp)


def _cells_of(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in row.strip("|").split("|"))
