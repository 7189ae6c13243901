//! The XDP program: entry points.

mod scratch;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use scratch::{Bytes, Scratch};
use sip_ebpf::text::SLACK;

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[xdp]
fn sipline_scan(ctx: XdpContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    let len = unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    if len < 43 {
        return 2;
    }
    let len = len - 42;
    if len > scratch::TEXT {
        return 2;
    }
    if !load(&ctx, scratch, 42, len) {
        return 2;
    }
    let t = Bytes::new(scratch, len);
    match sip_ebpf::scan::scan(t, unsafe { &mut (*scratch).index }) {
        Ok(()) => xdp_action::XDP_TX,
        Err(_) => xdp_action::XDP_DROP,
    }
}

fn load(ctx: &XdpContext, scratch: *mut Scratch, at: u32, len: u32) -> bool {
    let mut n = len as u64;
    unsafe { core::arch::asm!("{0} &= 4095", inout(reg) n, options(pure, nomem, nostack)) };
    if n == 0 || n > scratch::TEXT as u64 {
        return false;
    }
    unsafe {
        let text = (&raw mut (*scratch).text).cast::<u8>();
        if aya_ebpf::helpers::generated::bpf_xdp_load_bytes(ctx.ctx, at, text.cast(), n as u32) != 0
        {
            return false;
        }
        let end = text.add(n as usize);
        let mut i = 0;
        while i < SLACK as usize {
            core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) end.add(i), in(reg) 0u64, options(nostack));
            i += 8;
        }
    }
    true
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
