"""What happens, in which order: flows, their server, and the command line."""
