"""Networks from plans: the supernet, fixed networks, views of candidates, inheritance and recalibration."""
