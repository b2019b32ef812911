"""What is trained: one package per model family, and the parts that families share. Nothing here imports Ray."""
