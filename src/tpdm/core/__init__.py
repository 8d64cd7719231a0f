"""Types, paths, solvers and the stepper, and what all packages use: errors, files, devices and seeds."""
