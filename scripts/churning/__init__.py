"""Parts of the churn test; `scripts/churn.py` is the command."""
