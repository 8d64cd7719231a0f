"""Images from prompts, in one pipeline call or batched over many."""
