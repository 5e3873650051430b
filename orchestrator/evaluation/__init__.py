"""Arrays in, numbers out: scores, baselines, statistics, ensembles."""
