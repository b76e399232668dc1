"""Who runs which tile."""
