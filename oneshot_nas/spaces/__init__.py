"""Search spaces: one module each, found by its file name (see `oneshot_nas.arch`)."""
