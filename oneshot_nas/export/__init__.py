"""Networks as files for other programs: MXNet symbols, ONNX, their verification, and the costs of a symbol graph."""
