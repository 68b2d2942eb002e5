"""The command line: one file a command, each with a ``command``. ``cli.COMMANDS`` lists their names."""
