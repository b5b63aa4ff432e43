"""From a waiting image to an answer: worker, guarded child process, task."""
