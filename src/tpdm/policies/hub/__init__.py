"""TPM folders for others: model cards, checks and uploads."""
