"""A ladder of experiments, and what each lever did."""
