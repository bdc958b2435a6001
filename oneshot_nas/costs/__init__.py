"""FLOPs and parameters of architectures: exact (`analytic`), vectorised (`table`), limits (`limits`), the best (`exact`)."""
