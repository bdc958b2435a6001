"""The commands of `oneshot-nas`: one module each, found by its file name (see `oneshot_nas.cli.main`)."""
