"""Training pairs and the loop."""
