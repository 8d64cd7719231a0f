"""Distributed training: collectives, heartbeat and sharding."""
