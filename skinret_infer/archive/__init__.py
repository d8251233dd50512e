"""The archive of cases: its file, the pruning index beside it, and exact search."""
