"""This runner as a worker of somebody else's gateway, over the HTTP API that PyTrickle's containers have."""
