"""Experiments on tinyworld: quality of images against steps, over training seeds."""
