"""Scores of sets and of what models make of them: pure functions over features, and the commands of `cookgen eval`."""
