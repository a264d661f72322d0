"""The template of `ppl-lvm new`."""
