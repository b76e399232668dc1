"""Super-resolution that explains its input."""
