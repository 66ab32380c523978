"""Parameters that several ranks hold: DTensors, FSDP's life cycle, replicas, and torch.distributed's collectives."""
