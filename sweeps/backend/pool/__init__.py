"""The adapter pool: many adapters trained side by side on one frozen base."""
