"""What happened: for a person, as JSON, as a verdict."""
