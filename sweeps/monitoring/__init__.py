"""Views of a running sweep; none of them holds it up."""
