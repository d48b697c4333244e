"""The trainer: a Celery worker that claims work and supervises one child process that does it."""
