"""Sources: one file per kind of log."""
