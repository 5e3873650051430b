"""Tables by their names. Light: commands look at names before anything heavy is imported."""

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".xls")
HEADERLESS = ("id_prop.csv", "targets.csv")  # of CGCNN, ALIGNN and MatDeepLearn: an id and a value a line, no names
