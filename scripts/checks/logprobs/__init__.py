"""Parts of `compare_logprobs.py`."""
