"""Training of the shipped networks: simulated pairs and the loop. Needs the extra `train`."""
