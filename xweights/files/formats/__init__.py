"""One module for each file format, and the table of them."""
