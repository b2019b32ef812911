"""Generated puzzles with one answer each: Sudoku and mazes. numpy only, every function pure in its seed."""
