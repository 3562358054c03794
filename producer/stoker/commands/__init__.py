"""The commands of a client. Modules import only click and `stoker.command` at the top."""
