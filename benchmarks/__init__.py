"""Benchmarks of quality, speed and reliability: ``python -m benchmarks.quality --list`` and its two neighbors."""
