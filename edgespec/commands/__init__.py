"""The command line: one file for each command, with a function ``command``. ``cli.COMMANDS`` lists their names."""
