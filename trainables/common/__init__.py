"""What the training loop of every family uses."""
