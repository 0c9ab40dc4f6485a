"""Parts of the kernel benchmark; `scripts/bench_kernels.py` is the command."""
