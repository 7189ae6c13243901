//! sipline in user space.
