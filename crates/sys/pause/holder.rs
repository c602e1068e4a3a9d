//! Holds a user namespace, and what is made in it, for as long as its parent needs to take hold of them itself.
//!
//! Only a process with one thread may make a user namespace, which the server is not. So this does:
//!
//! 1. make a user namespace, and say so with a byte on the standard output: the parent can write the id maps now;
//! 2. for a byte on the standard input make a network namespace, which belongs to the user namespace, and say so;
//! 3. at the end of the input, which also comes when the parent dies, exit with status 0.
//!
//! A step that the kernel refuses ends it with the kernel's error number as the status.

#![no_std]
#![no_main]

use core::arch::global_asm;

use call::call;

mod call;

const STDIN: usize = 0;
const STDOUT: usize = 1;
const CLONE_NEWUSER: usize = 0x1000_0000;
const CLONE_NEWNET: usize = 0x4000_0000;
/// The error number of an interrupted call.
const EINTR: isize = 4;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const UNSHARE: usize = 272;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const UNSHARE: usize = 97;
    pub const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", main = sym main);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "b {main}", main = sym main);

extern "C" fn main() -> ! {
    make(CLONE_NEWUSER);
    while is_asked() {
        make(CLONE_NEWNET);
    }
    exit(0)
}

/// Makes a namespace and says so.
fn make(namespace: usize) {
    // SAFETY: the call takes a number.
    let made = unsafe { call(number::UNSHARE, namespace, 0, 0) };
    if made < 0 {
        exit(made.unsigned_abs());
    }
    let byte = 1u8;
    // A parent that does not listen any more has closed the other pipe as well.
    // SAFETY: the byte outlives the call.
    unsafe { call(number::WRITE, STDOUT, (&raw const byte) as usize, 1) };
}

/// Waits for a byte; false at the end of the input.
fn is_asked() -> bool {
    let mut byte = 0u8;
    loop {
        // SAFETY: the byte outlives the call, which writes one at most.
        let read = unsafe { call(number::READ, STDIN, (&raw mut byte) as usize, 1) };
        if read != -EINTR {
            return read == 1;
        }
    }
}

fn exit(status: usize) -> ! {
    loop {
        // SAFETY: the call takes a number and does not return.
        unsafe { call(number::EXIT_GROUP, status, 0, 0) };
    }
}

/// Required of a program without the standard library; nothing here can panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
