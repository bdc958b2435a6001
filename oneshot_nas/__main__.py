"""`python -m oneshot_nas`, the same as `oneshot-nas`."""

from oneshot_nas.cli.main import main

if __name__ == "__main__":
    main()
