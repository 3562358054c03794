"""Orders, forms and places: the scheduler that turns waiting requests into batches on workers, and watches those."""
