"""What runs where, and what came out."""
