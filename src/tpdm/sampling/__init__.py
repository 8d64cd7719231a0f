"""Images from prompts, one call or many at once."""
