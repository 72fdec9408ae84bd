"""How far a process of llama.cpp has come, by the lines that it prints while it loads a model."""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.measure.log_lines import LONGEST

# What llama.cpp's tools print between opening the file and the start of the run, in its order.
_DUMP = "llama_model_loader: Dumping metadata"
_FIRST_WORDS = (
    ("llama_model_loader: - kv ", "dump"), ("load: special_", "load"), ("print_info: ", "info"),
    ("llm_load_print_meta: ", "info"), ("load_tensors: ", "tensors"), ("llm_load_tensors: ", "tensors"),
    ("system_info: ", "system"), ("perplexity: tokenizing", "tokens"),
)  # fmt: skip
_WORDS = (
    ("constructing llama_context", "new"), ("KV buffer size", "new"), ("compute buffer", "context"),
    ("llama threadpool init", "pool"),
)  # fmt: skip
_ORDER = ("dump load info", "tensors", "new", "context", "pool", "system", "tokens")
_PLACES = {name: place for place, names in enumerate(_ORDER, 1) for name in names.split()}
_REPEATED = ("dump", "load", "info", "tensors", "new", "context")


@dataclass(slots=True)
class Steps:
    """How far a process has come, as its own lines tell.

    Attributes
    ----------
    reached
        The place of the last step in their order, 0 before the first.
    is_dumped
        Whether the loader printed the metadata, so the lines of the later steps are to be expected.
    has_context
        Whether the context was made, which every process does before its run.
    """

    reached: int = 0
    is_dumped: bool = False
    has_context: bool = False

    def take(self, line: str, name: str) -> bool:
        """Take a line of the step `name`, or of none; False if the step is one of another process."""
        if not name:
            self.is_dumped = self.is_dumped or line.startswith(_DUMP)
            return True
        place = _PLACES[name]
        if self.lacks_context() and place > _PLACES["context"]:
            return False
        if place < self.reached or (place == self.reached and name not in _REPEATED):
            return False
        self.reached = place
        self.has_context = self.has_context or name == "context"
        return True

    def lacks_context(self) -> bool:
        """Whether the loader printed all it does, but the context was never made: no run can follow."""
        return self.is_dumped and not self.has_context


def step_in(line: str) -> str:
    """The step of a process that a line is of, or ""."""
    # Plain searches, for this is asked of every line.
    if line.startswith(
        ("load", "llama_model_loader: - kv ", "llm_load", "print_info", "system_info", "perplexity")
    ):
        for word, name in _FIRST_WORDS:
            if line.startswith(word):
                return name
    if "llama" not in line and " buffer" not in line:
        return ""
    line = line[:LONGEST]
    found = [(at, name) for word, name in _WORDS if (at := line.find(word)) >= 0]
    return min(found)[1] if found else ""
