"""One file per command of ser-fit."""
