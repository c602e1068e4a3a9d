//! libFuzzer around the targets that the crates have in their modules `fuzzing`; `CRIMSON_FUZZ_TARGET` names the one to run.

#![no_main]

use std::sync::OnceLock;

/// Takes one input.
type Run = fn(&[u8]);

static TARGET: OnceLock<Run> = OnceLock::new();

fn targets() -> Vec<(&'static str, Run)> {
    let image = image::fuzzing::TARGETS.iter().map(|target| (target.name, target.run));
    let streaming = streaming::fuzzing::TARGETS.iter().map(|target| (target.name, target.run));
    image.chain(streaming).collect()
}

fn chosen() -> Run {
    let name = std::env::var("CRIMSON_FUZZ_TARGET").unwrap_or_default();
    let targets = targets();
    let found = targets.iter().find(|(target, _)| *target == name);
    let names: Vec<&str> = targets.iter().map(|(name, _)| *name).collect();
    assert!(found.is_some(), "CRIMSON_FUZZ_TARGET is one of {names:?}");
    found.unwrap_or(&targets[0]).1
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    TARGET.get_or_init(chosen)(input);
});
