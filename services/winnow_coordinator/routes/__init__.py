"""The REST surface, one file for each noun. A route parses, makes one use-case call and returns."""
