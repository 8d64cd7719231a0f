"""The engine of the server."""
