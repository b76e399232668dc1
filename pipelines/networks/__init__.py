"""Networks and how to load them."""
