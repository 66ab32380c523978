"""Edit a file: in place where only bytes change, else by rewriting it."""
