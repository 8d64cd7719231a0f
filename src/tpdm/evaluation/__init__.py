"""Evaluation of policies at equal numbers of steps."""
