"""StreamDiffusion: its parameters need no torch, its pipeline (`pipeline.py`) does."""
