"""Sources to observations to pairs to shards."""
