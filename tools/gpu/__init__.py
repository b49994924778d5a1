"""Checks and benchmarks of the kernels on a GPU: what `make gpu-check`, `gpu-kernels` and `gpu-end-to-end` run."""
