"""Benchmarks: what is timed, how, and on which machine stands in every result."""
