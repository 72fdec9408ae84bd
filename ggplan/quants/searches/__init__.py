"""Searches: how scales, minimums and codes are found for weights; ggml's, and those of best effort."""
