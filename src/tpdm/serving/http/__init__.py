"""The HTTP front of the server."""
