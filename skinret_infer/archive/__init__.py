"""Where the cases are: the file, the pruning index beside it, and exact search."""
