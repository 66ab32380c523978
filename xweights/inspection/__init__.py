"""Statistics, differences, checksums, plots and the HTML report."""
