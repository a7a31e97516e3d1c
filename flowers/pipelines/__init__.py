"""One module a job: its whole way, in the order in which the data flows."""
