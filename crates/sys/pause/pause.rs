//! The first process of a pod. It makes four system calls and then waits for the rest of its life.
//!
//! 1. Ended children shall vanish by themselves: SIGCHLD is ignored, which also holds for orphans that init inherits.
//! 2. SIGTERM and SIGINT are blocked, so that none is lost between two waits. For the first process of a pid namespace a
//!    signal without a handler would be dropped instead.
//! 3. One of the two is waited for.
//! 4. Exit with status 0, which makes the kernel end whatever is left in the namespace.
//!
//! No library, no heap, no data: code and stack are all it has. The build script of the crate `sys` compiles it.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::ptr::null;

use call::call;

mod call;

const SIG_SETMASK: usize = 2;
const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
const SA_NOCLDWAIT: usize = 2;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const SIGACTION: usize = 13;
    pub const SIGPROCMASK: usize = 14;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const SIGACTION: usize = 134;
    pub const SIGPROCMASK: usize = 135;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

/// The kernel's own form of a signal action.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", main = sym main);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "b {main}", main = sym main);

extern "C" fn main() -> ! {
    let ignore = Action { handler: SIG_IGN, flags: SA_NOCLDWAIT, restorer: 0, mask: 0 };
    let ends: u64 = 1 << (SIGTERM - 1) | 1 << (SIGINT - 1);
    let ends: *const u64 = &ends;
    // SAFETY: each pointer is null or points to a value of the kernel's form that outlives the call.
    unsafe {
        call(number::SIGACTION, SIGCHLD, (&raw const ignore) as usize, 0);
        call(number::SIGPROCMASK, SIG_SETMASK, ends as usize, 0);
        // A stop and continue interrupts the wait without one of the signals.
        while call(number::SIGTIMEDWAIT, ends as usize, null::<u8>() as usize, null::<u8>() as usize) < 0 {}
    }
    loop {
        // SAFETY: the call takes a number and does not return.
        unsafe { call(number::EXIT_GROUP, 0, 0, 0) };
    }
}

/// Required of a program without the standard library; nothing here can panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
