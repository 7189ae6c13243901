//! The XDP program.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: `cargo xtask build` makes it");
    std::process::exit(1);
}

#[cfg(target_arch = "bpf")]
mod kernel;
