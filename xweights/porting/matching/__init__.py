"""Find out which layer of the source corresponds to which layer of the target."""
