"""Sections of the report that belong to one family each: what is read from the store, and the script that draws it."""
