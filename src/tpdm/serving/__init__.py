"""The server: an engine and its HTTP front."""
