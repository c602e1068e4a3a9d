//! Images, from outside: the service itself, registries that fail, stores that are damaged, disks that are full.

mod full_disk;
mod service;
mod store;
mod trouble;
