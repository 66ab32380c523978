"""What the test matrix is made of: columns (targets and modes), twins, rows (verbs), a referee, and the comparison."""
