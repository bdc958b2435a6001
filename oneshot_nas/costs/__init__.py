"""FLOPs and parameters of architectures: exact (`analytic`), vectorised (`table`), and limits on them (`limits`)."""
