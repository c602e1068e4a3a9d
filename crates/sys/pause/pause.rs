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

use core::arch::{asm, global_asm};
use core::ptr::null;

const SIG_SETMASK: usize = 2;
const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
const SA_NOCLDWAIT: usize = 2;
/// Size in bytes of the kernel's set of 64 signals.
const SIGSET_SIZE: usize = 8;

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

/// A system call with three arguments and the size of a signal set as the fourth, which all three that take one want there.
///
/// # Safety
/// Pointers among the arguments must be valid for what the call does with them.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, one: usize, two: usize, three: usize) -> isize {
    let answer: isize;
    // SAFETY: the kernel changes rax, rcx and r11 only, and memory as the caller vouches for.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") one, in("rsi") two, in("rdx") three,
             in("r10") SIGSET_SIZE, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

/// As above.
///
/// # Safety
/// Pointers among the arguments must be valid for what the call does with them.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, one: usize, two: usize, three: usize) -> isize {
    let answer: isize;
    // SAFETY: the kernel changes x0 only, and memory as the caller vouches for.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") one => answer, in("x1") two, in("x2") three,
             in("x3") SIGSET_SIZE, options(nostack));
    }
    answer
}

/// Required of a program without the standard library; nothing here can panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
