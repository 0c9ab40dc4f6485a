"""Parts of the serving benchmark; `scripts/serve/bench_serving.py` is the command."""
