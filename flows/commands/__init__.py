"""What each command of `winnow` does; `flows.cli` lists them."""
