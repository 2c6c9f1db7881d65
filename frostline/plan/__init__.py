"""The planner: the frost line, the machine's rates, the cost model, and one pass per file."""
