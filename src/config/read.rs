//! Reads the files of the configuration into one layer over the other, and remembers where each value came from.
//!
//! Order: the defaults, `config.toml`, the files `*.toml` of the directory `config.toml.d` by name, the flags; what
//! comes later wins. All problems of all files are collected: an entry that cannot be used is reported, taken out,
//! and the rest is read again, so that one look shows everything.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::file::ConfigFile;
use super::problem::{Place, Problem};
use super::table::{Table, within};

/// Where each key was last given.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Place>);

impl Origins {
    /// The place where `key` was given last.
    pub(super) fn of(&self, key: &str) -> Place {
        self.0.get(key).cloned().unwrap_or(Place::Default)
    }

    pub(super) fn set(&mut self, key: impl Into<String>, place: Place) {
        self.0.insert(key.into(), place);
    }
}

/// The layers read so far, merged.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) merged: ConfigFile,
    pub(super) origins: Origins,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    pub(super) fn new() -> Self {
        Self { merged: ConfigFile::default(), origins: Origins::default(), problems: Vec::new() }
    }

    /// Lays `main` and its drop-ins on top; `main` itself may be missing unless `required`.
    pub(super) fn add_files(&mut self, main: &Path, required: bool) {
        match std::fs::read_to_string(main) {
            Ok(text) => self.add_text(main, &text),
            Err(error) if error.kind() == ErrorKind::NotFound && !required => {}
            Err(error) => self.problems.push(Problem::read(main, error)),
        }
        match drop_ins(main) {
            Ok(paths) => paths.iter().for_each(|path| self.add_drop_in(path)),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn add_drop_in(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.add_text(path, &text),
            Err(error) => self.problems.push(Problem::read(path, error)),
        }
    }

    fn add_text(&mut self, path: &Path, text: &str) {
        let (mut document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            self.problems.extend(errors.into_iter().map(|error| syntax(path, text, &error)));
            return;
        }
        let layer = loop {
            match ConfigFile::deserialize(Deserializer::from(document.clone())) {
                Ok(layer) => break layer,
                Err(error) => {
                    let offset = error.span().map_or(0, |span| span.start);
                    let taken = take_at(document.get_mut(), offset, "");
                    let is_last = taken.is_none();
                    self.problems.push(value(path, text, taken.unwrap_or_default(), &error));
                    if is_last {
                        return;
                    }
                }
            }
        };
        note_places(document.get_ref(), "", &mut |key, offset| {
            self.origins.set(key, Place::File(path.to_owned(), line(text, offset)));
        });
        self.merged.overlay(layer);
    }
}

/// The drop-in files of `main`, in the order in which they apply.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut name = main.as_os_str().to_owned();
    name.push(".d");
    let directory = PathBuf::from(name);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Problem::read(&directory, error)),
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|error| Problem::read(&directory, error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

/// Takes out the innermost entry that the byte `offset` belongs to, and returns its full name.
fn take_at(table: &mut DeTable<'_>, offset: usize, outer: &str) -> Option<String> {
    // A table under a header does not span its entries, so all tables are searched before any span is believed.
    for (key, entry) in table.iter_mut() {
        let name = within(outer, key.get_ref());
        if let DeValue::Table(inner) = entry.get_mut()
            && let Some(found) = take_at(inner, offset, &name)
        {
            return Some(found);
        }
    }
    let found = table.iter().find(|(key, entry)| covers(key, offset) || covers(entry, offset));
    let key = found.map(|(key, _)| key.clone())?;
    table.remove(&key);
    Some(within(outer, key.get_ref()))
}

fn covers<T>(spanned: &Spanned<T>, offset: usize) -> bool {
    spanned.span().contains(&offset)
}

fn note_places(table: &DeTable<'_>, outer: &str, note: &mut impl FnMut(String, usize)) {
    for (key, entry) in table {
        let name = within(outer, key.get_ref());
        if let DeValue::Table(inner) = entry.get_ref() {
            note_places(inner, &name, note);
        }
        note(name, key.span().start);
    }
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    Problem::Syntax { place: place(path, text, error), message: error.message().to_owned() }
}

fn value(path: &Path, text: &str, key: String, error: &toml::de::Error) -> Problem {
    Problem::Value { place: place(path, text, error), key, message: error.message().to_owned() }
}

fn place(path: &Path, text: &str, error: &toml::de::Error) -> Place {
    Place::File(path.to_owned(), line(text, error.span().map_or(0, |span| span.start)))
}

/// The line, counted from 1, of a byte of `text`.
fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)], required: bool) -> (tempfile::TempDir, Layers) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config.toml.d")).unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let mut layers = Layers::new();
        layers.add_files(&directory.path().join("config.toml"), required);
        (directory, layers)
    }

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        let (directory, layers) = read(files, true);
        let prefix = format!("{}/", directory.path().display());
        layers.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }

    #[test]
    fn a_missing_default_file_is_fine_and_a_missing_named_file_is_not() {
        let (_directory, layers) = read(&[], false);
        assert!(layers.problems.is_empty());
        assert_eq!(layers.merged, ConfigFile::default());
        assert_eq!(problems(&[]), ["config.toml: cannot be read"]);
    }

    #[test]
    fn drop_ins_win_by_name_merge_tables_and_replace_lists() {
        let (_directory, layers) = read(
            &[
                ("config.toml", "[log]\nlevel = 'warn'\nformat = 'json'\n[cni]\nbin_dirs = ['/a', '/b']\n"),
                ("config.toml.d/20-b.toml", "log.level = 'trace'\n[runtime.handlers.kata]\npath = '/kata'\n"),
                ("config.toml.d/10-a.toml", "[log]\nlevel = 'debug'\n[cni]\nbin_dirs = ['/c']\n"),
                ("config.toml.d/30-c.toml", "[runtime.handlers.runc]\npath = '/runc'\n"),
                ("config.toml.d/99-ignored.conf", "nonsense"),
            ],
            true,
        );
        assert!(layers.problems.is_empty(), "{:?}", layers.problems);
        let merged = toml::Value::try_from(&layers.merged).unwrap();
        assert_eq!(merged["log"]["level"].as_str(), Some("trace"));
        assert_eq!(merged["log"]["format"].as_str(), Some("json"));
        assert_eq!(merged["cni"]["bin_dirs"], toml::Value::try_from(["/c"]).unwrap());
        assert!(merged["cni"].get("conf_dir").is_none());
        assert_eq!(merged["runtime"]["handlers"].as_table().unwrap().len(), 2);
        let Place::File(path, 1) = layers.origins.of("log.level") else { panic!("wrong line") };
        assert!(path.ends_with("20-b.toml"));
        assert_eq!(layers.origins.of("cni.conf_dir"), Place::Default);
    }

    #[test]
    fn every_problem_is_reported_with_its_place_and_key() {
        let found = problems(&[
            (
                "config.toml",
                "rot = '/x'\nroot = 'relative'\n[log]\nlevel = 'loud'\n\n[cni]\ntimeout_secs = 0\n",
            ),
            ("config.toml.d/1.toml", "[log]\ncolour = true\n[limits]\ncreate_timeout_secs = 'long'\n"),
            ("config.toml.d/2.toml", "[runtime.handlers.runc]\npath = '/runc'\nfast = 1\n[nonsense]\n"),
        ]);
        let expected = [
            "config.toml:1: rot: unknown field `rot`",
            "config.toml:2: root: \"relative\" is not an absolute path",
            "config.toml:4: log.level: unknown variant `loud`",
            "config.toml:7: cni.timeout_secs: 0 is outside the range 1 to 86400",
            "config.toml.d/1.toml:2: log.colour: unknown field `colour`",
            "config.toml.d/1.toml:4: limits.create_timeout_secs: invalid type",
            "config.toml.d/2.toml:3: runtime.handlers.runc.fast: unknown field `fast`",
            "config.toml.d/2.toml:4: nonsense: unknown field `nonsense`",
        ];
        for line in expected {
            assert!(found.iter().any(|problem| problem.starts_with(line)), "{line:?} is not in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn broken_toml_names_the_line_and_does_not_hide_other_files() {
        let found = problems(&[
            ("config.toml", "[log]\nlevel = 'info'\nlevel = 'warn'\n"),
            ("config.toml.d/1.toml", "[log\n"),
            ("config.toml.d/2.toml", "x = 1\n"),
        ]);
        assert!(found[0].starts_with("config.toml:3: not valid TOML: duplicate key"), "{found:#?}");
        assert!(found[1].starts_with("config.toml.d/1.toml:1: not valid TOML:"), "{found:#?}");
        assert!(found.last().unwrap().starts_with("config.toml.d/2.toml:1: x:"), "{found:#?}");
    }
}
