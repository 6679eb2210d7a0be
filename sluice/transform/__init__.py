"""`sluice transform`: a file as a live stream through a pipeline, and back into a file."""
