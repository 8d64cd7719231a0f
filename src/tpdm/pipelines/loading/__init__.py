"""Pipelines from folders and the Hub, checked file by file."""
