//! Compiles the small programs beside this crate for the target of this build. They have no dependency, so one call of rustc
//! each will do.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// The programs, by the names of their sources.
const PROGRAMS: [&str; 2] = ["pause", "holder"];

/// What makes them small: no start files, no library, one segment of code that is also the header, nothing to relocate.
const FLAGS: [&str; 17] = [
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
    println!("cargo::rerun-if-changed=pause");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    PROGRAMS.iter().try_for_each(|name| compile(name))
}

fn compile(name: &str) -> Result<(), Box<dyn Error>> {
    let source = format!("pause/{name}.rs");
    let output = Path::new(&variable("OUT_DIR")?).join(name);
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.arg(format!("--crate-name={name}")).args(FLAGS).args(["--target", &variable("TARGET")?]);
    rustc.arg("-o").arg(output).arg(&source);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    // Flags meant for the product, such as instrumentation, cannot work without its libraries.
    let status = rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").status()?;
    if status.success() { Ok(()) } else { Err(format!("rustc ended with {status} for {source}").into()) }
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}
