//! A disk that remembers every write and every flush, in their order: a file served over FUSE, for a loop device to lie on.
//!
//! The kernel's block layer keeps a write in the air until it is answered, and sends a flush for what must have reached the
//! medium. So any set of writes since the last flush is what a power cut may leave of them.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::mount::MountFlags;

/// What the disk was asked to do.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

/// The disk, served until it is unmounted.
#[derive(Debug)]
pub(super) struct RecordedDisk {
    directory: PathBuf,
    medium: Arc<Mutex<Medium>>,
}

#[derive(Debug)]
struct Medium {
    content: Vec<u8>,
    events: Vec<Event>,
}

/// A request of the kernel: its code and number, and what follows its header.
struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
const WRITE_HEADER: usize = 40;
const MAX_WRITE: u32 = 128 << 10;
const ROOT: u64 = 1;
const DISK: u64 = 2;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

impl RecordedDisk {
    /// Serves a disk with this content in `directory`.
    pub(super) fn serve(content: Vec<u8>, directory: &Path) -> Self {
        let kernel = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", kernel.as_raw_fd());
        let options = CString::new(options).unwrap();
        rustix::mount::mount("disk", directory, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let medium = Arc::new(Mutex::new(Medium { content, events: Vec::new() }));
        let served = Arc::clone(&medium);
        std::thread::spawn(move || serve(&kernel, &served));
        Self { directory: directory.to_owned(), medium }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// How many events there were so far.
    pub(super) fn position(&self) -> usize {
        self.medium.lock().unwrap().events.len()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.medium.lock().unwrap().events.clone()
    }
}

/// Ends with the mount.
fn serve(mut kernel: &File, medium: &Mutex<Medium>) {
    let mut buffer = vec![0; MAX_WRITE as usize + 4096];
    while let Ok(length) = kernel.read(&mut buffer) {
        let request = Request::parse(&buffer[..length]);
        let answer = request.answer(&mut medium.lock().unwrap());
        if let Some((error, body)) = answer {
            let length = OUT_HEADER + u32::try_from(body.len()).unwrap();
            let header = [&length.to_le_bytes()[..], &(-error).to_le_bytes(), &request.unique.to_le_bytes()];
            // The kernel may have given the request up.
            drop(kernel.write(&[&header.concat()[..], &body].concat()));
        }
    }
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Self {
        let (header, body) = bytes.split_at(IN_HEADER);
        Self { opcode: u32_at(header, 4), unique: u64_at(header, 8), node: u64_at(header, 16), body }
    }

    /// Error code and body; requests that nobody waits for have none.
    fn answer(&self, medium: &mut Medium) -> Option<(i32, Vec<u8>)> {
        let size = medium.content.len() as u64;
        let body = match self.opcode {
            1 if self.body == b"disk\0" => entry(size),
            1 => return Some((ENOENT, Vec::new())),
            2 | 36 | 42 => return None,
            3 | 4 => [&numbers(&[3600, 0])[..], &attributes(self.node, size)].concat(),
            14 => numbers(&[0, 0]),
            15 => medium.read(u64_at(self.body, 8), u32_at(self.body, 16)),
            16 => medium.write(u64_at(self.body, 8), &self.body[WRITE_HEADER..]),
            18 | 25 | 38 => Vec::new(),
            20 => medium.flush(),
            26 => welcome(self.body),
            _ => return Some((ENOSYS, Vec::new())),
        };
        Some((0, body))
    }
}

impl Medium {
    fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap().min(self.content.len());
        let end = (start + length as usize).min(self.content.len());
        self.content[start..end].to_vec()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let offset = usize::try_from(offset).unwrap();
        self.content[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.events.push(Event::Write { offset, bytes: bytes.to_vec() });
        numbers(&[bytes.len() as u64])
    }

    fn flush(&mut self) -> Vec<u8> {
        self.events.push(Event::Flush);
        Vec::new()
    }
}

/// Version 7.31, no read ahead, writes of up to 128 KiB.
fn welcome(request: &[u8]) -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    let mut body = Vec::new();
    for number in [7, 31, u32_at(request, 8), BIG_WRITES, 0, MAX_WRITE, 1] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.resize(64, 0);
    body
}

fn entry(size: u64) -> Vec<u8> {
    [&numbers(&[DISK, 0, 3600, 3600, 0])[..], &attributes(DISK, size)].concat()
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (0o040_700_u32, 0) } else { (0o100_600, size) };
    let mut attributes = numbers(&[node, size, size / 512, 0, 0, 0]);
    for number in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        attributes.extend_from_slice(&number.to_le_bytes());
    }
    attributes
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
