//! System calls, for programs without any library.

use core::arch::asm;

/// Size in bytes of the kernel's set of 64 signals.
const SIGSET_SIZE: usize = 8;

/// A system call with three arguments and the size of a signal set as the fourth: those that take one want it there, the
/// others do not look at it.
///
/// # Safety
/// Pointers among the arguments must be valid for what the call does with them.
#[cfg(target_arch = "x86_64")]
pub unsafe fn call(number: usize, one: usize, two: usize, three: usize) -> isize {
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
pub unsafe fn call(number: usize, one: usize, two: usize, three: usize) -> isize {
    let answer: isize;
    // SAFETY: the kernel changes x0 only, and memory as the caller vouches for.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") one => answer, in("x1") two, in("x2") three,
             in("x3") SIGSET_SIZE, options(nostack));
    }
    answer
}
