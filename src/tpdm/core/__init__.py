"""Pure tensor mathematics: paths, grids, solvers, the Beta policy, the objective."""
