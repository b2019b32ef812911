"""What varies: one module per sweep with its presets, its space and its scheduler settings."""
