"""The command line, and the embedded stack that `winnow up` and `winnow demo` start."""
