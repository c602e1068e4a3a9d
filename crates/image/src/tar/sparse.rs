//! The maps of sparse files, in GNU tar's four formats.

use super::TarError;
use super::header::{BLOCK, number};
use super::pax::decimal;

/// Bytes that a sparse file really has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

const MAX_REGIONS: usize = 1 << 17;
const REGION_BYTES: usize = 24;
const MAX_DIGITS: usize = 20;

/// Regions must ascend without overlap, stay within the file and add up to the data stored.
pub(super) fn check(regions: &[Region], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut sum = 0_u64;
    for region in regions {
        let next = region.offset.checked_add(region.len).ok_or(TarError::Sparse)?;
        if region.offset < end || next > size {
            return Err(TarError::Sparse);
        }
        end = next;
        sum += region.len;
    }
    if sum == stored { Ok(()) } else { Err(TarError::Sparse) }
}

pub(super) fn check_count(count: usize) -> Result<(), TarError> {
    if count <= MAX_REGIONS { Ok(()) } else { Err(TarError::Sparse) }
}

pub(super) fn header_regions(block: &[u8; BLOCK]) -> Result<Vec<Region>, TarError> {
    regions_at(block, 386, 4)
}

pub(super) fn header_is_extended(block: &[u8; BLOCK]) -> bool {
    block[482] != 0
}

pub(super) fn header_real_size(block: &[u8; BLOCK]) -> Result<u64, TarError> {
    block.get(483..495).and_then(number).ok_or(TarError::Sparse)
}

pub(super) fn block_regions(block: &[u8; BLOCK]) -> Result<Vec<Region>, TarError> {
    regions_at(block, 0, 21)
}

pub(super) fn block_is_extended(block: &[u8; BLOCK]) -> bool {
    block[504] != 0
}

/// Up to `count` pairs of twelve-digit numbers; an empty pair ends them.
fn regions_at(block: &[u8; BLOCK], start: usize, count: usize) -> Result<Vec<Region>, TarError> {
    let table = block.get(start..start + count * REGION_BYTES).unwrap_or_default();
    table
        .chunks_exact(REGION_BYTES)
        .take_while(|pair| pair.first().is_some_and(|&b| b != 0))
        .map(|pair| {
            let (offset, len) = pair.split_at(REGION_BYTES / 2);
            let offset = number(offset).ok_or(TarError::Sparse)?;
            Ok(Region { offset, len: number(len).ok_or(TarError::Sparse)? })
        })
        .collect()
}

/// `offset,length,offset,length,…`
pub(super) fn parse_list(list: &[u8]) -> Result<Vec<Region>, TarError> {
    let numbers: Option<Vec<u64>> = list.split(|&b| b == b',').map(decimal).collect();
    pair_up(&numbers.ok_or(TarError::Sparse)?)
}

fn pair_up(numbers: &[u64]) -> Result<Vec<Region>, TarError> {
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(TarError::Sparse);
    }
    Ok(pairs.filter_map(|p| Some(Region { offset: *p.first()?, len: *p.get(1)? })).collect())
}

/// Parses PAX format 1.0's leading map block by block: a count, then that many pairs, a number a line.
#[derive(Default)]
pub(super) struct MapParser {
    line: Vec<u8>,
    numbers: Vec<u64>,
}

impl MapParser {
    /// Takes one block; the regions once the map is complete, the rest of the block being padding.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Region>>, TarError> {
        for &byte in block {
            if byte == b'\n' {
                self.numbers.push(decimal(&self.line).ok_or(TarError::Sparse)?);
                self.line.clear();
            } else {
                self.line.push(byte);
                if self.line.len() > MAX_DIGITS {
                    return Err(TarError::Sparse);
                }
            }
            if let Some((&count, rest)) = self.numbers.split_first() {
                let wanted = usize::try_from(count).map_err(|_| TarError::Sparse)?;
                check_count(wanted)?;
                if rest.len() == wanted * 2 {
                    return pair_up(rest).map(Some);
                }
            }
        }
        Ok(None)
    }
}
