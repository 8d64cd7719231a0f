"""Policies: what decides the times of an image."""
