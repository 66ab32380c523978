"""Read, write and edit live targets."""
