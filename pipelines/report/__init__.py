"""The page that says what became of every video."""
