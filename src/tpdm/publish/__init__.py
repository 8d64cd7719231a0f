"""A trained TPM for others: what it is, whether it is sound, its card, and the way to a folder or the hub."""
