"""Sharing of TPM folders: model cards, checks and uploads."""
