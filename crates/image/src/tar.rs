//! Reads tar archives as layers use them: ustar, PAX, GNU long names, GNU and PAX sparse files, base-256 numbers.
//!
//! Own code rather than the `tar` crate because xattr values are binary (`security.capability` may hold a newline, at
//! which that crate splits PAX records), sparse PAX files must not be unpacked as their map, and every refusal must say
//! what is wrong. The crate builds the archives of the tests, so that two independent readings of the format meet.
//!
//! Promises: reads forward only, allocates no more than [`MAX_EXTENSION`] for an entry's metadata whatever the archive
//! says, and never panics. Names are bytes, as they stand in the archive; nothing is resolved or cleaned here.

mod header;
mod pax;
mod sparse;
mod write;

use std::io::{self, Read};

use header::{BLOCK, Header};
use pax::Records;
pub(crate) use sparse::Region;
pub(crate) use write::file_header;

/// Largest PAX header or GNU long name that is read.
const MAX_EXTENSION: u64 = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream beneath failed: cut, not decompressible, or longer than announced.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// The archive ends within an entry.
    #[error("the archive ends early")]
    Truncated,
    /// A header's checksum does not match.
    #[error("a header has a wrong checksum")]
    Checksum,
    /// A number in a header is not one.
    #[error("the {0} field of a header is not a number")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("a PAX record is malformed: {0}")]
    Pax(&'static str),
    /// A header extension is larger than anything real.
    #[error("a header extension of {0} bytes is too large")]
    ExtensionTooLarge(u64),
    /// The map of a sparse file does not describe its data.
    #[error("the map of a sparse file is malformed")]
    Sparse,
    /// An entry of a type that layers do not have.
    #[error("entry type {0:?} is not supported")]
    Type(char),
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One entry's metadata; its data is read from the archive before the next entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// The file's length, holes included.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes go, when they are not simply the whole file.
    pub(crate) regions: Option<Vec<Region>>,
}

/// A tar archive being read.
pub(crate) struct Archive<R> {
    input: R,
    /// Bytes of the current entry that are still to come, and the padding behind them.
    remaining: u64,
    padding: u64,
    global: Records,
}

/// Extensions that precede the header they belong to.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Records,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0, global: Records::default() }
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            self.expect_data(header.size()?);
            match header.type_flag() {
                b'L' => extensions.long_name = Some(until_nul(self.read_extension()?)),
                b'K' => extensions.long_link = Some(until_nul(self.read_extension()?)),
                b'x' | b'X' => extensions.pax = Records::parse(&self.read_extension()?)?,
                b'g' => {
                    let records = Records::parse(&self.read_extension()?)?;
                    self.global.extend(records)?;
                }
                b'V' => {}
                _ => return self.finish_entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads the current entry's stored data; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let count = read_some(&mut self.input, buffer.get_mut(..limit).unwrap_or_default())?;
        if count == 0 {
            return Err(TarError::Truncated);
        }
        self.remaining -= count as u64;
        Ok(count)
    }

    /// Bytes of the current entry's data that were not read yet.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The stream beneath, to tell it what is being read.
    pub(crate) fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The stream beneath, for whatever follows the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn finish_entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarError> {
        let pax = self.global.overlaid_by(extensions.pax);
        if let Some(size) = pax.number("size")? {
            self.expect_data(size);
        }
        let regions = self.read_sparse_map(header, &pax)?;
        let (size, regions) = match regions {
            Some((size, regions)) => (size, Some(regions)),
            None => (self.remaining, None),
        };
        let (seconds, nanos) = pax.time("mtime")?.unwrap_or((header.mtime()?, 0));
        let path = pax
            .get("GNU.sparse.name")
            .or(pax.get("path"))
            .map(<[u8]>::to_vec)
            .or(extensions.long_name)
            .unwrap_or_else(|| header.path());
        let kind = header.kind(&path)?;
        if kind != Kind::File {
            // A size on anything but a file describes no data; old archives put the target's size on hard links.
            self.drop_data_unless_present(header)?;
        }
        Ok(Entry {
            kind,
            link: pax
                .get("linkpath")
                .map(<[u8]>::to_vec)
                .or(extensions.long_link)
                .unwrap_or_else(|| header.link()),
            mode: header.mode()? & 0o7777,
            uid: id(pax.number("uid")?.map_or_else(|| header.uid(), Ok)?, "uid")?,
            gid: id(pax.number("gid")?.map_or_else(|| header.gid(), Ok)?, "gid")?,
            mtime: (seconds, nanos),
            size,
            xattrs: pax.xattrs()?,
            path,
            regions,
        })
    }

    /// Hard links, symbolic links, devices and fifos have no data whatever their size field says (POSIX); directories
    /// may be followed by data that is skipped.
    fn drop_data_unless_present(&mut self, header: &Header) -> Result<(), TarError> {
        if matches!(header.type_flag(), b'1' | b'2' | b'3' | b'4' | b'6') {
            self.expect_data(0);
        }
        Ok(())
    }

    fn read_sparse_map(
        &mut self,
        header: &Header,
        pax: &Records,
    ) -> Result<Option<(u64, Vec<Region>)>, TarError> {
        let (size, regions) = if header.type_flag() == b'S' {
            self.read_old_sparse(header)?
        } else if pax.get("GNU.sparse.major").is_some_and(|major| major == b"1") {
            let size = pax.number("GNU.sparse.realsize")?.ok_or(TarError::Sparse)?;
            (size, self.read_leading_map()?)
        } else if let Some(size) = pax.number("GNU.sparse.size")? {
            (size, pax.sparse_regions()?)
        } else {
            return Ok(None);
        };
        sparse::check(&regions, size, self.remaining)?;
        Ok(Some((size, regions)))
    }

    /// GNU's first format: four regions in the header, more in blocks behind it.
    fn read_old_sparse(&mut self, header: &Header) -> Result<(u64, Vec<Region>), TarError> {
        let mut regions = sparse::header_regions(header.bytes())?;
        let mut extended = sparse::header_is_extended(header.bytes());
        while extended {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            regions.extend(sparse::block_regions(&block)?);
            extended = sparse::block_is_extended(&block);
            sparse::check_count(regions.len())?;
        }
        Ok((sparse::header_real_size(header.bytes())?, regions))
    }

    /// PAX format 1.0: the map is text at the start of the data, padded to whole blocks.
    fn read_leading_map(&mut self) -> Result<Vec<Region>, TarError> {
        let mut parser = sparse::MapParser::default();
        loop {
            let mut block = [0; BLOCK];
            self.remaining = self.remaining.checked_sub(BLOCK as u64).ok_or(TarError::Sparse)?;
            self.fill(&mut block)?;
            if let Some(regions) = parser.feed(&block)? {
                return Ok(regions);
            }
        }
    }

    /// Zero blocks end an archive; so does the end of the stream, between entries.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let count = read_up_to(&mut self.input, &mut block)?;
        if count == 0 || (count == BLOCK && block.iter().all(|&b| b == 0)) {
            return Ok(None);
        }
        if count < BLOCK {
            return Err(TarError::Truncated);
        }
        Header::parse(block).map(Some)
    }

    fn expect_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut rest = self.remaining.checked_add(self.padding).ok_or(TarError::Number("size"))?;
        (self.remaining, self.padding) = (0, 0);
        let mut scratch = [0; 8192];
        while rest > 0 {
            let limit = usize::try_from(rest).unwrap_or(usize::MAX).min(scratch.len());
            let count = read_some(&mut self.input, scratch.get_mut(..limit).unwrap_or_default())?;
            if count == 0 {
                return Err(TarError::Truncated);
            }
            rest -= count as u64;
        }
        Ok(())
    }

    fn read_extension(&mut self) -> Result<Vec<u8>, TarError> {
        if self.remaining > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLarge(self.remaining));
        }
        let mut bytes = vec![0; usize::try_from(self.remaining).unwrap_or_default()];
        self.fill(&mut bytes)?;
        self.remaining = 0;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        let wanted = buffer.len();
        if read_up_to(&mut self.input, buffer)? == wanted { Ok(()) } else { Err(TarError::Truncated) }
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(TarError::Read),
        }
    }
}

fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read_some(input, buffer.get_mut(filled..).unwrap_or_default())? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// The kernel's "no id" value (−1) cannot own a file.
fn id(number: u64, field: &'static str) -> Result<u32, TarError> {
    u32::try_from(number).ok().filter(|&id| id != u32::MAX).ok_or(TarError::Number(field))
}

#[cfg(test)]
mod tests;
