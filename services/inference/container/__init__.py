"""Somebody else's container as the host of our sessions: it speaks PyTrickle's HTTP API and trickle."""
