"""Programs, variants and peers of the speed benchmark."""
