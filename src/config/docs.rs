//! The reference of the configuration, made from the declarations in `file`.
//!
//! Two forms: the commented file that `crimson config default` prints, and `docs/config.md`. A test holds the latter to
//! the code; `UPDATE_DOCS=1 cargo test -p crimson docs` writes it anew.

use super::file::ConfigFile;
use super::table::{Description, Table as _};

const PREAMBLE: &str = "\
# Configuration

Made from `src/config/file.rs`; do not edit it here.

`crimson serve` reads `/etc/crimson/config.toml`, which may be missing, or the file named by `--config`, which may not. Then it reads
the files `*.toml` in the directory of the same name with `.d` appended, in the order of their names. What is read later wins, and
flags win over files. Tables are merged key by key; a list is replaced as a whole. A key that is not in this list is an error.

| command | what it does |
|---|---|
| `crimson config default` | prints a file with every key at its default |
| `crimson config check` | reads the configuration as `serve` would and prints every problem with file, line and key |
| `crimson config dump` | prints the configuration in force, all files and flags taken together |
| `crimson reload` | has the running server read its configuration again, and fails when that stays without effect |
";

const RELOAD: &str = "
## Reloading

`systemctl reload crimson`, `crimson reload` or SIGHUP has the server read files and drop-ins again; its flags stay. Everything is checked
before anything changes: with one problem anywhere, or a default handler that would not work, all of the old configuration stays in
force, `systemctl reload` fails, and journal and `systemctl status` say why. When the command returns, the new configuration is in
force for whatever begins from then on. Keys that take effect at a restart are named in a warning when they have changed. A handler that
is taken away stays usable for pods that have it until the server is restarted, and new pods do not get it. OCI runtimes are tried out
again at each reload.

| key | takes effect |
|---|---|
";

/// A file with every key at its default, each below its explanation.
#[must_use]
pub fn sample() -> String {
    let mut text = String::new();
    for table in tables() {
        let mark = if table.is_example { "# " } else { "" };
        if !table.name.is_empty() {
            text.push('\n');
        }
        comment(&mut text, table.about);
        if !table.name.is_empty() && !table.keys.is_empty() {
            text.push_str(&format!("{mark}[{}]\n", table.name));
        }
        for key in &table.keys {
            if table.name.is_empty() {
                text.push('\n');
            }
            comment(&mut text, key.about);
            text.push_str(&format!("{mark}{} = {}\n", key.name, key.value));
        }
    }
    text
}

fn comment(text: &mut String, lines: &[&str]) {
    for line in lines {
        text.push_str(&format!("#{line}\n"));
    }
}

/// The text of `docs/config.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = PREAMBLE.to_owned();
    for table in tables() {
        let title =
            if table.name.is_empty() { "Top of the file".to_owned() } else { format!("`[{}]`", table.name) };
        text.push_str(&format!("\n## {title}\n\n{}\n\n", sentence(table.about)));
        text.push_str(&format!("| key | {} | meaning |\n|---|---|---|\n", value_column(&table)));
        for key in &table.keys {
            text.push_str(&format!("| `{}` | `{}` | {} |\n", key.name, key.value, sentence(key.about)));
        }
    }
    text.push_str(RELOAD);
    for table in tables() {
        for key in &table.keys {
            let when = if key.needs_restart { "at a restart" } else { "at a reload" };
            text.push_str(&format!("| `{}` | {when} |\n", super::table::within(&table.name, key.name)));
        }
    }
    text
}

fn value_column(table: &Description) -> &'static str {
    if table.is_example { "example" } else { "default" }
}

/// A doc comment as one line.
pub(crate) fn sentence(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Every table in the order of the file.
pub(crate) fn tables() -> Vec<Description> {
    let mut tables = Vec::new();
    ConfigFile::describe("", &mut tables);
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_reads_back_as_the_defaults() {
        let read: ConfigFile = toml::from_str(&sample()).unwrap();
        assert_eq!(read, ConfigFile::defaults(), "{}", sample());
    }

    #[test]
    fn the_example_in_the_sample_is_valid_once_uncommented() {
        let text = sample();
        let uncommented =
            text.replace("# [runtime.", "[runtime.").replace("# path =", "path =").replace("NAME", "crun");
        let read: ConfigFile = toml::from_str(&uncommented).unwrap();
        assert_eq!(read.runtime.handlers.0.len(), 1, "{uncommented}");
    }

    #[test]
    fn the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, markdown(), "docs/config.md is stale: UPDATE_DOCS=1 cargo test -p crimson docs");
    }
}
