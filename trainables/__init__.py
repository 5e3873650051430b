"""What one training run is: data, graphs, model, fit and predict. No Ray, Optuna or matbench in here."""
