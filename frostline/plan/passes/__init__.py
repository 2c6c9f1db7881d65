"""One optimisation per file, each with its condition, its predicted saving and its exactness."""
