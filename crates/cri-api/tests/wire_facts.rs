//! Holds the compiled protocol to the table of facts `cri-v1.36.tsv`, in both directions.
//!
//! Owns the reading of both sides as sets of lines in the table's own form: a kind, a full name, and four columns. One
//! comparison of sets then finds what is missing, what is extra and what changed its number, type, label, oneof or
//! streaming, and the failure lists every difference at once.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use prost_types::{MethodDescriptorProto, ServiceDescriptorProto};

const TABLE: &str = include_str!("cri-v1.36.tsv");
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));
const FACTS: usize = 672;

/// Facts by kind and name; the value holds the columns after the name.
type Facts = BTreeMap<(String, String), String>;

#[test]
fn compiled_protocol_is_the_table_of_facts() {
    let expected = read_table(TABLE);
    assert_eq!(expected.len(), FACTS, "the table itself has lost or gained lines");
    let differences = compare(&expected, &read_descriptors(DESCRIPTORS));
    assert!(differences.is_empty(), "proto/runtime/v1/api.proto differs from the table:\n{differences}");
}

#[test]
fn comparison_sees_every_kind_of_difference() {
    let table =
        "field\ta.A.x\t1\tint32\toptional\t-\nrpc\ta.S.R\t-\ta.A\ta.A\tstream\nmessage\ta.B\t-\t-\t-\t-\n";
    let expected = read_table(table);
    assert_eq!(compare(&expected, &expected), "");
    let changes = ["\t1\t", "int32", "optional", "stream", "message\ta.B", "a.A.x"];
    for change in changes {
        let actual = read_table(&table.replace(change, &change.replace(|c: char| c != '\t', "9")));
        assert!(!compare(&expected, &actual).is_empty(), "a change of {change:?} goes unseen");
    }
}

fn read_table(text: &str) -> Facts {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| fact(line.splitn(3, '\t').collect::<Vec<_>>().try_into().unwrap())).collect()
}

fn fact([kind, name, columns]: [&str; 3]) -> ((String, String), String) {
    ((kind.to_owned(), name.to_owned()), columns.to_owned())
}

fn compare(expected: &Facts, actual: &Facts) -> String {
    let mut report = String::new();
    for (key @ (kind, name), columns) in expected {
        match actual.get(key) {
            None => writeln!(report, "  missing: {kind} {name} {columns}").unwrap(),
            Some(found) if found != columns => {
                writeln!(report, "  changed: {kind} {name}: expected {columns}, found {found}").unwrap();
            }
            Some(_) => {}
        }
    }
    for ((kind, name), columns) in actual.iter().filter(|(key, _)| !expected.contains_key(*key)) {
        writeln!(report, "  extra:   {kind} {name} {columns}").unwrap();
    }
    report
}

fn read_descriptors(bytes: &[u8]) -> Facts {
    let set = FileDescriptorSet::decode(bytes).unwrap();
    let mut facts = Facts::new();
    for file in &set.file {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        let scope = file.package();
        file.message_type.iter().for_each(|message| read_message(&mut facts, scope, message));
        file.enum_type.iter().for_each(|values| read_enum(&mut facts, scope, values));
        file.service.iter().for_each(|service| read_service(&mut facts, scope, service));
    }
    facts
}

fn read_message(facts: &mut Facts, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    if message.field.is_empty() {
        add(facts, "message", name.clone(), ["-", "-", "-", "-"]);
    }
    for field in &message.field {
        read_field(facts, &name, message, field);
    }
    message.nested_type.iter().for_each(|nested| read_message(facts, &name, nested));
    message.enum_type.iter().for_each(|values| read_enum(facts, &name, values));
}

fn read_field(facts: &mut Facts, scope: &str, message: &DescriptorProto, field: &FieldDescriptorProto) {
    let label = match field.label() {
        Label::Optional => "optional",
        Label::Required => "required",
        Label::Repeated => "repeated",
    };
    let oneof = field.oneof_index.map(|index| message.oneof_decl[usize::try_from(index).unwrap()].name());
    let columns = [&field.number().to_string(), &type_of(field), label, oneof.unwrap_or("-")];
    add(facts, "field", format!("{scope}.{}", field.name()), columns);
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => bare(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_ascii_lowercase(),
    }
}

fn read_enum(facts: &mut Facts, scope: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        let name = format!("{scope}.{}.{}", values.name(), value.name());
        add(facts, "enum", name, [&value.number().to_string(), "-", "-", "-"]);
    }
}

fn read_service(facts: &mut Facts, scope: &str, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let name = format!("{scope}.{}.{}", service.name(), method.name());
        let columns = ["-", bare(method.input_type()), bare(method.output_type()), streaming(method)];
        add(facts, "rpc", name, columns);
    }
}

fn streaming(method: &MethodDescriptorProto) -> &'static str {
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => "-",
        (false, true) => "stream",
        (true, false) => "client stream",
        (true, true) => "both stream",
    }
}

/// Descriptors write full names with a leading dot.
fn bare(name: &str) -> &str {
    name.trim_start_matches('.')
}

fn add(facts: &mut Facts, kind: &str, name: String, columns: [&str; 4]) {
    let previous = facts.insert((kind.to_owned(), name.clone()), columns.join("\t"));
    assert!(previous.is_none(), "{kind} {name} is declared twice");
}
