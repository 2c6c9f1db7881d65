"""Frostline."""
