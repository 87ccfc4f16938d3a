"""Benchmarks: one script a question, each a ratio or difference against a named reference in the same run."""
