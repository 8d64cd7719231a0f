"""Metrics, warnings, image sheets and trackers of a training run."""
