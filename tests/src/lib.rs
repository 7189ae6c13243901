//! tests of sipline.
