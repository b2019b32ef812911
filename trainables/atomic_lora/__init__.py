"""A small encoder-decoder (the Champion) trained on all ARC tasks, and one LoRA adapter per task on top of it."""
