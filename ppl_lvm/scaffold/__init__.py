"""Files of a new model, its guide and their test: `ppl-lvm new`."""
