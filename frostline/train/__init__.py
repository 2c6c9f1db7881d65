"""The training loop and what it is made of: optimisers, schedules, checkpoints, the run's folder, the run doctor."""
