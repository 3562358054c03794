"""`stoker simulate`: a trace through the policy of a real queue, in virtual time."""
