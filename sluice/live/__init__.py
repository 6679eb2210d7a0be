"""`sluice publish` and `sluice play`: what moves as a live stream, and a live stream in whatever plays it."""
