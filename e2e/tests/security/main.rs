//! What a process in a container may do and see, looked at from inside: under every OCI runtime of the machine that works, against
//! what was asked for, against the other runtime, and against an exec in the same container.

mod ask;
mod cases;
mod confined;
mod ground;
mod look;
mod mounts;
mod refusals;
