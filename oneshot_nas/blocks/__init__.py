"""Gluon blocks that compute the ops of a plan; the only place that knows MXNet operators."""
