//! Declares a table of the configuration once, and gets from it everything that must not drift apart.
//!
//! `table!` turns one declaration (keys with their doc comment, type and default) into the struct as written, in
//! which every key may be absent, its defaults, its merge with a later layer, its comparison with another reading, and its
//! description for the reference. Tables merge key by key; a list is a value and is replaced as a whole.
//!
//! A key after `@restart` keeps its value while the daemon runs; all others can be reloaded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::values::HandlerName;

/// What every table of the configuration can do.
pub trait Table: Sized {
    /// The table with every key at its default.
    fn defaults() -> Self;

    /// Takes over every key that `later` has.
    fn overlay(&mut self, later: Self);

    /// Adds this table, called `name`, and the tables within it to the reference.
    fn describe(name: &str, tables: &mut Vec<Description>);

    /// Adds every key of this table, called `name`, whose value is another in `next`.
    fn compare(&self, next: &Self, name: &str, changes: &mut Vec<Change>);

    /// Takes the value in `running` for every key that only a restart can change.
    fn keep_until_restart(&mut self, running: &Self);
}

/// A key, or a whole table, that is different in another reading of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its full name.
    pub key: String,
    /// Whether it takes effect at a restart only.
    pub needs_restart: bool,
}

/// A table in the reference.
#[derive(Debug)]
pub struct Description {
    /// Full name; empty for the top of the file.
    pub name: String,
    /// Its doc comment, by line.
    pub about: &'static [&'static str],
    /// Its keys in order.
    pub keys: Vec<Key>,
    /// Whether it is there by default, or only an example of what may be there.
    pub is_example: bool,
}

/// A key in the reference.
#[derive(Debug)]
pub struct Key {
    /// Name within its table.
    pub name: &'static str,
    /// Its doc comment, by line.
    pub about: &'static [&'static str],
    /// Its default in TOML, or an example of a value.
    pub value: String,
    /// Whether another value takes effect at a restart only.
    pub needs_restart: bool,
}

impl Key {
    /// A key whose default is `value`.
    pub fn new<V: Serialize>(
        name: &'static str,
        about: &'static [&'static str],
        value: V,
        needs_restart: bool,
    ) -> Self {
        let value =
            toml::Value::try_from(value).map_or_else(|error| error.to_string(), |value| value.to_string());
        Self { name, about, value, needs_restart }
    }
}

/// Tables under names that the file chooses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Named<T>(pub BTreeMap<HandlerName, T>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Table + PartialEq> Table for Named<T> {
    fn defaults() -> Self {
        Self::default()
    }

    fn overlay(&mut self, later: Self) {
        for (name, table) in later.0 {
            match self.0.get_mut(&name) {
                Some(earlier) => earlier.overlay(table),
                None => drop(self.0.insert(name, table)),
            }
        }
    }

    fn describe(name: &str, tables: &mut Vec<Description>) {
        let first = tables.len();
        T::describe(&format!("{name}.NAME"), tables);
        tables.iter_mut().skip(first).for_each(|table| table.is_example = true);
    }

    fn compare(&self, next: &Self, name: &str, changes: &mut Vec<Change>) {
        for (key, table) in &self.0 {
            let name = within(name, key.as_str());
            match next.0.get(key) {
                Some(next) => table.compare(next, &name, changes),
                None => changes.push(Change { key: name, needs_restart: false }),
            }
        }
        for key in next.0.keys().filter(|key| !self.0.contains_key(*key)) {
            changes.push(Change { key: within(name, key.as_str()), needs_restart: false });
        }
    }

    fn keep_until_restart(&mut self, running: &Self) {
        for (name, table) in &mut self.0 {
            if let Some(running) = running.0.get(name) {
                table.keep_until_restart(running);
            }
        }
    }
}

/// The full name of a table or key within the table `outer`.
pub(super) fn within(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}

macro_rules! table {
    (
        $(#[doc = $about:literal])+
        pub struct $Table:ident {
            $( $(#[doc = $doc:literal])+ $(@$when:ident)? $key:ident: $Value:ty = $default:expr, )*
        }
        $( with { $( $sub:ident: $Sub:ty, )+ } )?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Table {
            $(
                $(#[doc = $doc])+
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $key: Option<$Value>,
            )*
            $($(
                #[doc = concat!("The table `", stringify!($sub), "`.")]
                pub $sub: $Sub,
            )+)?
        }

        impl $Table {
            $(
                #[doc = concat!("The key `", stringify!($key), "`, or its default.")]
                #[must_use]
                pub fn $key(&self) -> $Value {
                    self.$key.clone().unwrap_or_else(|| $default)
                }
            )*
        }

        impl $crate::config::table::Table for $Table {
            fn defaults() -> Self {
                Self {
                    $( $key: Some($default), )*
                    $($( $sub: <$Sub as $crate::config::table::Table>::defaults(), )+)?
                }
            }

            fn overlay(&mut self, later: Self) {
                $( if later.$key.is_some() { self.$key = later.$key; } )*
                $($( self.$sub.overlay(later.$sub); )+)?
            }

            fn describe(name: &str, tables: &mut Vec<$crate::config::table::Description>) {
                tables.push($crate::config::table::Description {
                    name: name.to_owned(),
                    about: &[$($about),+],
                    keys: vec![ $(
                        $crate::config::table::Key::new::<$Value>(
                            stringify!($key),
                            &[$($doc),+],
                            $default,
                            $crate::config::table::needs_restart!($($when)?),
                        ),
                    )* ],
                    is_example: false,
                });
                $($(
                    <$Sub as $crate::config::table::Table>::describe(
                        &$crate::config::table::within(name, stringify!($sub)),
                        tables,
                    );
                )+)?
            }

            fn compare(&self, next: &Self, name: &str, changes: &mut Vec<$crate::config::table::Change>) {
                $(
                    if self.$key() != next.$key() {
                        changes.push($crate::config::table::Change {
                            key: $crate::config::table::within(name, stringify!($key)),
                            needs_restart: $crate::config::table::needs_restart!($($when)?),
                        });
                    }
                )*
                $($(
                    let name_of_sub = $crate::config::table::within(name, stringify!($sub));
                    self.$sub.compare(&next.$sub, &name_of_sub, changes);
                )+)?
            }

            fn keep_until_restart(&mut self, running: &Self) {
                $(
                    if $crate::config::table::needs_restart!($($when)?) {
                        self.$key = Some(running.$key());
                    }
                )*
                $($( self.$sub.keep_until_restart(&running.$sub); )+)?
            }
        }
    };
}

/// The mark of a key as a value.
macro_rules! needs_restart {
    () => {
        false
    };
    (restart) => {
        true
    };
}

pub(super) use {needs_restart, table};
