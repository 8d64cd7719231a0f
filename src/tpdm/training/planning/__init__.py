"""Estimates of what a training takes."""
