"""What a study says: verdict, importances, figures, files."""
