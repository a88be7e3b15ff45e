//! How a record lies in its file: in one of two slots, written in turn, each with a generation and a
//! checksum, so that whoever is killed while writing leaves the other slot as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::model::Key;

/// How much room a slot has. The file is sparse: only what is written takes space.
const SLOT: u64 = 1 << 20;

/// What a slot begins with, so that a foreign file is not taken for ours.
const MAGIC: [u8; 8] = *b"dlock\0\r\n";

/// Magic, generation, boot, clock base, length, checksum.
const HEADER: usize = 8 + 8 + 16 + 8 + 4 + 4;

/// The longest record.
#[expect(clippy::cast_possible_truncation, reason = "SLOT is a constant that fits any usize")]
pub(super) const MAX_RECORD: usize = SLOT as usize - HEADER;

/// A slot's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// How often the file was written.
    pub(super) generation: u64,
    /// The boot in which it was written.
    pub(super) boot: [u8; 16],
    /// What to add to BOOTTIME to get the key's clock, in microseconds, while leases go by time.
    pub(super) base: i64,
    /// The record.
    pub(super) record: Vec<u8>,
}

impl Page {
    /// The key of the record, which what another version of dlock wrote has, too.
    pub(super) fn key(&self) -> Option<Key> {
        #[derive(serde::Deserialize)]
        struct Named {
            key: Key,
        }
        serde_json::from_slice::<Named>(&self.record).ok().map(|named| named.key)
    }
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing yet.
    Empty,
    /// This.
    Page(Page),
    /// Something, but no valid page.
    Damaged,
}

/// Reads the newest valid page. Without the mutex a slot may be in the middle of being written, and the
/// other one is then the newest.
pub(super) fn read(file: &File) -> io::Result<Content> {
    let mut newest: Option<Page> = None;
    for slot in 0..2 {
        if let Some(page) = read_slot(file, slot)?
            && newest.as_ref().is_none_or(|newest| newest.generation < page.generation)
        {
            newest = Some(page);
        }
    }
    match newest {
        Some(page) => Ok(Content::Page(page)),
        None if file.metadata()?.len() == 0 => Ok(Content::Empty),
        None => Ok(Content::Damaged),
    }
}

fn read_slot(file: &File, slot: u64) -> io::Result<Option<Page>> {
    // Most records fit the first read.
    let mut bytes = vec![0; 4096];
    let length = read_at(file, &mut bytes, slot * SLOT)?;
    bytes.truncate(length);
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let mut rest = &header[..];
    let mut take = |n: usize| {
        let (field, after) = rest.split_at(n);
        rest = after;
        field
    };
    if take(8) != MAGIC {
        return Ok(None);
    }
    let generation = u64::from_le_bytes(take(8).try_into().expect("took 8"));
    let boot = take(16).try_into().expect("took 16");
    let base = i64::from_le_bytes(take(8).try_into().expect("took 8"));
    let record = u32::from_le_bytes(take(4).try_into().expect("took 4")) as usize;
    let checksum = u32::from_le_bytes(take(4).try_into().expect("took 4"));
    if record > MAX_RECORD {
        return Ok(None);
    }
    let have = bytes.len();
    if have < HEADER + record {
        bytes.resize(HEADER + record, 0);
        let more = read_at(file, &mut bytes[have..], slot * SLOT + have as u64)?;
        bytes.truncate(have + more);
    }
    bytes.truncate(HEADER + record);
    let sums = bytes.len() == HEADER + record && checksum == sum(&bytes);
    let record = bytes.split_off(HEADER);
    Ok(sums.then_some(Page { generation, boot, base, record }))
}

/// Writes the page that follows generation `page.generation - 1`.
pub(super) fn write(file: &File, page: &Page) -> io::Result<()> {
    let length = u32::try_from(page.record.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + page.record.len());
    bytes.extend(MAGIC);
    bytes.extend(page.generation.to_le_bytes());
    bytes.extend(page.boot);
    bytes.extend(page.base.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&page.record);
    let checksum = sum(&bytes);
    bytes[HEADER - 4..HEADER].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&bytes, page.generation % 2 * SLOT)
}

/// The checksum of a slot: all of it but the checksum itself.
fn sum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEADER - 4]);
    hasher.update(&bytes[HEADER..]);
    hasher.finalize()
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted - buffer.len())
}

#[cfg(test)]
mod tests {
    use super::{Content, HEADER, Page, SLOT, read, write};
    use std::os::unix::fs::FileExt;

    fn page(generation: u64, length: usize) -> Page {
        Page { generation, boot: [7; 16], base: -5, record: vec![b'x'; length] }
    }

    #[test]
    fn the_newest_of_two_pages_is_read_whatever_its_length() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(read(&file).expect("read"), Content::Empty);
        for (generation, length) in [(1, 10), (2, 100_000), (3, 0), (4, 4096)] {
            write(&file, &page(generation, length)).expect("write");
            assert_eq!(read(&file).expect("read"), Content::Page(page(generation, length)));
        }
    }

    #[test]
    fn a_page_that_was_half_written_leaves_the_one_before_it() {
        for cut in [0, 7, HEADER - 1, HEADER, HEADER + 99] {
            let file = tempfile::tempfile().expect("a file");
            write(&file, &page(2, 100)).expect("write");
            write(&file, &page(3, 100)).expect("write");
            file.write_all_at(&vec![0xff; HEADER + 100 - cut], SLOT + cut as u64).expect("damage");
            assert_eq!(read(&file).expect("read"), Content::Page(page(2, 100)), "{cut}");
        }
    }

    #[test]
    fn a_foreign_file_is_damaged_and_not_empty() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"#!/bin/sh\n", 0).expect("write");
        assert_eq!(read(&file).expect("read"), Content::Damaged);
    }
}
