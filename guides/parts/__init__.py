"""Building blocks that several guides share."""
