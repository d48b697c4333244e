"""The sampling service: stateless, FAISS, no torch, no database; usable without the rest of Winnow."""
