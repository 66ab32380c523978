"""Parts of the test matrix: columns (targets and modes), twins, rows (verbs), a referee, and the comparison."""
