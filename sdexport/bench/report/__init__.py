"""The report of a run: its content, computed once from the results, and one template a format."""
