"""Importance matrices: how much each column of a weight matters, measured by running a model on text.

`llama-imatrix` sums the squares of what flows into every matrix, column by column, and counts the tokens;
their quotient, the mean square of a column's input, weighs the errors of an encoder. An expert's sums are
its own, since each token visits only a few of them.
"""

from ggplan.imatrix.entries import Imatrix, ImatrixEntry
from ggplan.imatrix.loading import load_imatrix

__all__ = ["Imatrix", "ImatrixEntry", "load_imatrix"]
