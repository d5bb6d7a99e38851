"""One file per command of ser-fit; their table is `cli.COMMANDS`."""
