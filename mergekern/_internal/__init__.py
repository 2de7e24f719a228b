"""What every room may use and none is about: files, locks, checks of arguments, versions; knows nothing of models."""
