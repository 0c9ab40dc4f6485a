"""Parts of the kernel benchmark; `scripts/kernels/bench_kernels.py` is the command."""
