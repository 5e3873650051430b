"""What may be varied: the known good configurations, and (with the study issues) search spaces and experiments."""
