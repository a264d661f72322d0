"""Ready encoders and decoders, so that a new pair needs no network boilerplate."""
