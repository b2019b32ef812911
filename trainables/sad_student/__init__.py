"""Small language models that learn to reason and act from a larger one (structured agent distillation, SAD)."""
