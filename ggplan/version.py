"""The version of ggplan: in the package, in the files it writes, and in the journal of a conversion."""

__version__ = "0.1.0"
