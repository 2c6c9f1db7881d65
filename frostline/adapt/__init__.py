"""What learns and what is frozen: one file per method."""
