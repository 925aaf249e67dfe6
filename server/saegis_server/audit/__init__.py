"""The audit log: hash-chained records of decisions and endings, written ahead of the answer's end."""
