"""A tiny network applied recursively to puzzles, with learned halting and latent planning."""
