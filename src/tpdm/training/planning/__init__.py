"""Plans of training runs: memory, evaluations and files before anything is loaded."""
