"""fit and predict."""
