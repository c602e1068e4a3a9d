//! The first process of a pod, as a program of its own that is part of this one.
//!
//! It does what its pid namespace needs and nothing else: it exists, lets the kernel take away every orphan that ends, and
//! ends itself with status 0 on SIGTERM or SIGINT. Its source is `pause/pause.rs`; the build script compiles it without any
//! library, so that it runs in an empty directory and takes a few KiB of memory.

/// The program, a static ELF file for the architecture this crate was built for.
pub const BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::Child;

    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::thread::UnshareFlags;

    use super::*;
    use crate::spawn::Program;

    fn install() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        crate::atomic::write(&path, BINARY, 0o555).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions(), Permissions::from_mode(0o100_555));
        // A test that starts a program at the same time may hold the file we have just written for another moment. Later there
        // is no second try: a first process that cannot run it takes its namespace with it.
        let mut command = Program::new(&path, Path::new("/")).into_command().unwrap();
        loop {
            match command.spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now();
                }
                child => break drop(Guarded(child.unwrap())),
            }
        }
        dir
    }

    /// A process that does not outlive its test, also when that fails.
    struct Guarded(Child);

    impl Guarded {
        fn start(program: Program) -> Self {
            Self(program.start().unwrap())
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }
    }

    impl Drop for Guarded {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    /// Children of this thread from now on are in a pid namespace whose first process is pause.
    fn start_as_init(dir: &Path) -> Guarded {
        crate::thread::unshare(UnshareFlags::NEWPID).unwrap();
        let pause = Guarded::start(Program::new(&dir.join("pause"), Path::new("/")));
        wait_until(|| waits(pause.pid()));
        pause
    }

    /// Asleep after its first system call: only the wait sleeps.
    fn waits(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        let child_bit = 1 << (libc::SIGCHLD - 1);
        u64::from_str_radix(ignored, 16).unwrap() & child_bit != 0 && status.contains("\nState:\tS")
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed().as_secs() < 60, "the process does not get there");
            std::thread::yield_now();
        }
    }

    fn children(pid: i32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    }

    #[test]
    fn it_is_a_small_static_program() {
        assert!(BINARY.starts_with(b"\x7fELF"));
        assert!(BINARY.len() < 16 * 1024, "{} bytes", BINARY.len());
        let has = |text: &[u8]| BINARY.windows(text.len()).any(|window| window == text);
        assert!(!has(b"ld-linux") && !has(b"libc.so"));
    }

    #[test]
    fn as_init_it_lets_orphans_vanish_and_ends_on_term_and_int() {
        let dir = install();
        for signal in [libc::SIGTERM, libc::SIGINT] {
            crate::thread::run("pid-namespace", || {
                let mut pause = start_as_init(dir.path());
                let (from_orphan, orphans_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
                let (orphans_start, to_orphan) = pipe_with(PipeFlags::CLOEXEC).unwrap();
                let shell = Program::new(Path::new("/bin/sh"), Path::new("/"))
                    .stdin(orphans_start)
                    .stdout(orphans_end);
                let mut shell = Guarded::start(shell.args(["-c", "exec 3<&0; (read line <&3) & exit 0"]));
                assert!(shell.0.wait().unwrap().success());
                assert_ne!(children(pause.pid()), "", "the orphan is pause's child now");
                drop(to_orphan);
                File::from(from_orphan).read_to_end(&mut Vec::new()).unwrap();
                wait_until(|| children(pause.pid()).is_empty());
                crate::process::kill(pause.pid(), signal).unwrap();
                let status = pause.0.wait().unwrap();
                assert_eq!((status.code(), status.signal()), (Some(0), None));
            })
            .unwrap()
            .unwrap();
        }
    }

    #[test]
    fn it_takes_next_to_no_memory() {
        let dir = install();
        let program = || Program::new(&dir.path().join("pause"), Path::new("/"));
        let mut pauses: Vec<Guarded> = (0..4).map(|_| Guarded::start(program())).collect();
        for pause in &pauses {
            wait_until(|| waits(pause.pid()));
            let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pause.pid())).unwrap();
            let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
            let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
            println!("pause {} bytes on disk, {line}", BINARY.len());
            assert!(kib <= 16, "{line}");
        }
        for pause in &mut pauses {
            crate::process::kill(pause.pid(), libc::SIGTERM).unwrap();
            assert_eq!(pause.0.wait().unwrap().code(), Some(0));
        }
    }
}
