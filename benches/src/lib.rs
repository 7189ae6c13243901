//! benches of sipline.
