"""What you run: one short script per sweep, and the runner, the pool and the results store they share."""
