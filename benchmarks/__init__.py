"""Questions with a measured answer: one file per question."""
