"""Runtime, storage, assets, tracking and the command line."""
