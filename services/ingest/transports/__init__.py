"""Other ways in and out than plain HTTP: each feeds the one core."""
