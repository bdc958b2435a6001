"""What says how good an architecture is: accuracy with inherited weights, and rankings of indicators."""
