"""Prompts: files, tables and data sets that they are read from, and the held-out split."""
