"""Scores of finished images: higher is better, fp32, one per image."""
