//! File systems of our own, on loop devices.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// What a new ext4 of this size has on its disk.
pub(super) fn new_file_system(file: &Path, bytes: u64) -> Vec<u8> {
    fs::write(file, []).unwrap();
    fs::File::options().write(true).open(file).unwrap().set_len(bytes).unwrap();
    let options = ["-q", "-F", "-b", "4096", "-N", "4096", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"];
    run(Command::new("mke2fs").args(["-t", "ext4"]).args(options).arg(file));
    let content = fs::read(file).unwrap();
    fs::remove_file(file).unwrap();
    content
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn mount(disk: &Path, at: &Path) {
    // The file system writes its journal every second by itself, so that more of it is without its data.
    run(Command::new("mount").args(["-t", "ext4", "-o", "loop,noatime,commit=1"]).arg(disk).arg(at));
}

/// What another test is just starting may hold a file on it for another moment.
pub(super) fn unmount(at: &Path) {
    let begun = Instant::now();
    loop {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Err(Errno::BUSY) if begun.elapsed() < Duration::from_secs(60) => std::thread::yield_now(),
            done => return done.unwrap(),
        }
    }
}
