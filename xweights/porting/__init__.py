"""Port the weights of a model to its twin in another framework, and prove the result."""
