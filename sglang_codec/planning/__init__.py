"""From the radix paths of a batch to a `Plan`. NumPy only."""
