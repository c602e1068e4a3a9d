//! Compiles the pause program for the target of this build. It has no dependency, so one call of rustc will do.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// What makes it small: no start files, no library, one segment of code that is also the header, nothing to relocate.
const FLAGS: [&str; 18] = [
    "--crate-name=pause",
    "--crate-type=bin",
    "--edition=2024",
    "-Copt-level=z",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Cdebuginfo=0",
    "-Cstrip=symbols",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,noseparate-code",
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-Wl,-z,noexecstack",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=pause/pause.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let output = Path::new(&variable("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(FLAGS).args(["--target", &variable("TARGET")?]).arg("-o").arg(output).arg("pause/pause.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    // Flags meant for the product, such as instrumentation, cannot work without its libraries.
    let status = rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("rustc ended with {status} for pause/pause.rs").into())
    }
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}
