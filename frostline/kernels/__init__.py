"""The numerics that the planner's passes choose from: cross-entropy in chunks, LoRA as one function, attention without padding."""
