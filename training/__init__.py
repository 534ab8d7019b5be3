"""Shards to checkpoints: one engine, three stages."""
