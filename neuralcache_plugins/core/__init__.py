"""Pure functions on arrays: no state, no clock, no chance of their own, no I/O."""
