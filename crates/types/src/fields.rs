//! The fixed names of log fields. A message never carries a value in its text: it stands in one of these fields, so
//! that searching for `container.id=…` gives the whole story of a container.
//!
//! `tracing` macros take field names as literals, so these constants serve documentation and tests; the list is the
//! rule. Counters in summary lines (`sandboxes`, `containers`, `undone`, `broken`, `tasks`, `pending`) come on top.

/// Every field name that log lines may use.
pub const ALL: &[&str] = &[
    "pod.id",
    "pod.name",
    "pod.ns",
    "container.id",
    "exec.id",
    "image.ref",
    "image.id",
    "id",
    "handler",
    "rpc",
    "op",
    "step",
    "pid",
    "exit_code",
    "path",
    "elapsed_ms",
    "error",
];
