//! Stories that an operator would tell, with real processes. See `tests/`.
