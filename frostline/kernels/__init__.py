"""The numerics that planner passes choose from."""
