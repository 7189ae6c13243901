//! The `sipline` command.
fn main() {}
