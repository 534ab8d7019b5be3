"""Sources of generated people."""
