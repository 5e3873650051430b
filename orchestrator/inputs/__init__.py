"""What is to be made, and on which rows."""
