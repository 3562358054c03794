"""Models of a few lines that a worker can serve as they are: `stoker worker --model <module>:<class>`."""
