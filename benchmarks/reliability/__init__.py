"""Runs that are killed and servers that are attacked: what they promise is checked."""
