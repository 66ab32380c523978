"""Find out which layer of the source is which layer of the target."""
