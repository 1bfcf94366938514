"""`bigmodel` and `python -m bigmodel_cli`."""

from bigmodel_cli.cli.app import main

if __name__ == "__main__":
    main()
