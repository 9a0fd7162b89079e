// An empty program, to compare start-up with.
