"""Training of supernets and fixed networks: samplers, one step, the loop, checkpoints."""
