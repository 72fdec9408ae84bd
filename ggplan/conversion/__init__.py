"""From a plan to the GGUF file: rows are read, encoded and written in one streaming pass."""

from ggplan.conversion.streaming import ConversionResult, ConvertOptions, convert

__all__ = ["ConversionResult", "ConvertOptions", "convert"]
