//! The image that pulls are measured with: eight layers of some 450 MB in all, of which gzip makes about 200 MB.
//!
//! Always the same bytes. Sizes of files follow a log-normal distribution, as those of root file systems do: half of
//! them are smaller than 4 KiB, a few are of many megabytes and hold most of the bytes. Contents are text that
//! compresses well, tables that compress to a half, and noise, as in pictures and archives.

use std::io::Write;

use tar::{Builder, EntryType, Header};

/// Megabytes of each layer, unpacked: a distribution, a language with its libraries, an application.
pub const LAYERS: [usize; 8] = [120, 95, 70, 60, 50, 35, 15, 5];
/// Every content is put together of pieces of this much; longer than what compressors look back would find again.
const CORPUS: usize = 16 << 20;
const MEDIAN_SIZE: f64 = 4096.0;
/// Standard deviation of the logarithm of sizes.
const SPREAD: f64 = 2.0;
const LARGEST: f64 = 30e6;
const FILES_PER_DIRECTORY: usize = 14;

/// Bytes to make files of.
#[derive(Debug)]
pub struct Sample {
    text: Vec<u8>,
    tables: Vec<u8>,
    noise: Vec<u8>,
}

impl Sample {
    /// The same bytes every time.
    pub fn new() -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        Self { text: text(&mut random), tables: tables(&mut random), noise: noise(&mut random) }
    }

    /// One layer's archive, not compressed.
    pub fn layer(&self, number: usize) -> std::io::Result<Vec<u8>> {
        let mut random = Random(0xd1b5_4a32_d192_ed03 ^ (number as u64 + 1));
        let size = LAYERS.get(number).copied().unwrap_or(1) * 1_000_000;
        let mut layer = Builder::new(Vec::with_capacity(size + size / 8));
        let mut count = 0;
        while layer.get_ref().len() < size {
            let directory = directory(number, count / FILES_PER_DIRECTORY);
            if usize::is_multiple_of(count, FILES_PER_DIRECTORY) {
                append(&mut layer, EntryType::Directory, &directory, b"")?;
            }
            let name = format!("{directory}file-{count:05}");
            self.node(&mut layer, &mut random, &name, size)?;
            count += 1;
        }
        layer.into_inner()
    }

    /// One in sixteen is a symbolic link, one a program, the others plain files.
    fn node(
        &self,
        layer: &mut Builder<Vec<u8>>,
        random: &mut Random,
        name: &str,
        most: usize,
    ) -> std::io::Result<()> {
        match random.below(16) {
            0 => append(layer, EntryType::Symlink, name, b""),
            _ => append(layer, EntryType::Regular, name, &self.content(random, most / 2)),
        }
    }

    fn content(&self, random: &mut Random, most: usize) -> Vec<u8> {
        let size = (MEDIAN_SIZE * (random.normal() * SPREAD).exp()).min(LARGEST) as usize;
        let size = size.min(most);
        let mut content = Vec::with_capacity(size);
        while content.len() < size {
            let corpus = match random.below(20) {
                0..2 => &self.noise,
                2..6 => &self.tables,
                _ => &self.text,
            };
            let piece = (4096 + random.below(60_000)).min(size - content.len());
            let start = random.below(corpus.len() - piece);
            content.extend_from_slice(corpus.get(start..start + piece).unwrap_or_default());
        }
        content
    }
}

fn append(layer: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory || content.len().is_multiple_of(16) {
        0o755
    } else {
        0o644
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000 + content.len() as u64);
    if kind == EntryType::Symlink {
        header.set_size(0);
        return layer.append_link(&mut header, name, "../target-of-a-link");
    }
    header.set_size(content.len() as u64);
    layer.append_data(&mut header, name, content)
}

fn directory(layer: usize, number: usize) -> String {
    let tops = ["usr/lib/modules", "usr/share/doc", "opt/app/site-packages", "var/lib/data"];
    let top = tops.get(number % tops.len()).copied().unwrap_or("srv");
    format!("{top}/{layer}/part-{}/set-{number}/", number / 40)
}

/// Words of a dictionary, the first of it most often.
fn text(random: &mut Random) -> Vec<u8> {
    const LETTERS: &[u8] = b"eeeeeetttttaaaaooooiiiinnnnssshhhrrrdddlllcccuuummwwffggyyppbbvkjxqz_(";
    let word = |random: &mut Random| -> Vec<u8> {
        let len = 2 + random.below(4) + random.below(6);
        (0..len).map(|_| LETTERS.get(random.below(LETTERS.len())).copied().unwrap_or(b'e')).collect()
    };
    let words: Vec<Vec<u8>> = (0..6000).map(|_| word(random)).collect();
    let mut text = Vec::with_capacity(CORPUS + 64);
    while text.len() < CORPUS {
        let among = 1 + random.below(words.len());
        text.extend_from_slice(words.get(random.below(among)).map(Vec::as_slice).unwrap_or_default());
        text.push(if random.below(11) == 0 { b'\n' } else { b' ' });
    }
    text
}

/// Rows of growing offsets, small numbers and now and then a hash, as in programs and databases.
fn tables(random: &mut Random) -> Vec<u8> {
    let mut rows = Vec::with_capacity(CORPUS + 64);
    let mut offset = 0_u32;
    while rows.len() < CORPUS {
        offset = offset.wrapping_add(8 + random.below(512) as u32);
        rows.extend_from_slice(&offset.to_le_bytes());
        rows.extend_from_slice(&(random.below(40) as u16).to_le_bytes());
        rows.extend_from_slice(&[0, 0, (random.next() & 0x0f) as u8, 0]);
        rows.extend_from_slice(&random.next().to_le_bytes()[..random.below(8)]);
    }
    rows
}

fn noise(random: &mut Random) -> Vec<u8> {
    let mut noise = Vec::with_capacity(CORPUS + 8);
    while noise.len() < CORPUS {
        noise.write_all(&random.next().wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()).unwrap_or_default();
    }
    noise
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 33) as usize) % limit.max(1)
    }

    /// Nearly normal: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f64 {
        let uniform = |random: &mut Self| random.below(1 << 24) as f64 / f64::from(1 << 24);
        (0..12).map(|_| uniform(self)).sum::<f64>() - 6.0
    }
}
