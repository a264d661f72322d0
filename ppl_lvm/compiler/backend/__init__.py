"""Machine code for graphs: Inductor, CUDA graphs, several steps per call."""
