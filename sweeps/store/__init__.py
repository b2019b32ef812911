"""The Parquet files of a run: their columns, and how they are written, read and summarised."""
