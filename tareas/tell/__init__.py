"""What happened: in words, as JSON, on a terminal, as a verdict."""
