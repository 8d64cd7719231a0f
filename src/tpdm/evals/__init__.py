"""Judging what was trained: statistics over images, plots, and the report rendered from results."""
