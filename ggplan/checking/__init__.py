"""The linter of recipes: what a recipe says against what it will do, each finding with a code and a remedy.

    >>> report = check_recipe("my.recipe")
    >>> [(d.code, d.line, d.column) for d in report.diagnostics]

`check` says how; the other modules hold what there is to find, by what it needs to know.
"""

from ggplan.checking.check import Report, check_recipe
from ggplan.checking.subject import subject_of

__all__ = ["Report", "check_recipe", "subject_of"]
