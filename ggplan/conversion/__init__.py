"""From a plan to the GGUF file: rows are read, encoded and written in one streaming pass."""

from ggplan.conversion.streaming import ConversionResult, convert

__all__ = ["ConversionResult", "convert"]
