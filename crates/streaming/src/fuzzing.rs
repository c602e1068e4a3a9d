//! What the fuzzer of `fuzz/` calls, with the promises that hold for every input; not part of the library.
//!
//! Exists in tests and under `cfg(fuzzing)` only. The tests replay everything that the fuzzer has found worth keeping
//! (`fuzz/corpus`) and everything that once broke a promise (`fuzz/regressions`).

use crate::{spdy, websocket};

/// One kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its directories in `fuzz`.
    pub name: &'static str,
    /// Takes one input; panics when a promise does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "spdy_frames", run: spdy::fuzzing::frames },
    Target { name: "spdy_headers", run: spdy::fuzzing::headers },
    Target { name: "websocket_channels", run: websocket::fuzzing::channels },
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Runs a target with every file beneath `directory`, and says how many there were.
    fn replay(target: &Target, directory: &Path) -> usize {
        let Ok(files) = fs::read_dir(directory) else { return 0 };
        files.map(|file| (target.run)(&fs::read(file.unwrap().path()).unwrap())).count()
    }

    #[test]
    fn what_was_found_before_breaks_no_promise() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        for target in TARGETS {
            let seeds = replay(target, &fuzz.join("corpus").join(target.name));
            assert!(seeds > 0, "{} has no seeds", target.name);
            replay(target, &fuzz.join("regressions").join(target.name));
        }
    }
}
