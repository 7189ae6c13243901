//! The `sipline` command: the daemon, and what operators say to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    sip_user::cli::main()
}
