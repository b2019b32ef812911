"""From a command line to an exit code, for any family."""
