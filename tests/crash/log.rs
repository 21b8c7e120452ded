//! The log of `tests/support/disk_log.c`, record by record.
//!
//! Comes in: the bytes of the file. Goes out: records in the order in which things were done. The test
//! adds marks of its own: what it asked for, and what was acknowledged. May not enter: what they mean.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// What was done. Folders and files are inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    FileMade { folder: u64, inode: u64, name: &'a str },
    FolderMade { folder: u64, inode: u64, name: &'a str },
    LinkMade { folder: u64, name: &'a str, to: &'a str },
    SecondName { folder: u64, inode: u64, name: &'a str },
    Written { inode: u64, offset: u64, data: &'a [u8] },
    Cut { inode: u64, size: u64 },
    Renamed { folder: u64, name: &'a str, to: u64, new: &'a str },
    Removed { folder: u64, name: &'a str },
    Synced { inode: u64 },
    Mark(&'a str),
}

/// Bytes of a record before its name.
const HEAD: usize = 32;
const MARK: u32 = 10;

/// All records of a log.
pub fn records(mut log: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    while !log.is_empty() {
        let (record, rest) = first(log);
        records.push(record);
        log = rest;
    }
    records
}

fn first(log: &[u8]) -> (Record<'_>, &[u8]) {
    let (head, rest) = log.split_at(HEAD);
    let short = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (a, b) = (long(8), long(16));
    let (name, rest) = rest.split_at(short(4) as usize);
    let (data, rest) = rest.split_at(usize::try_from(long(24)).expect("a size"));
    let text = |bytes| std::str::from_utf8(bytes).expect("names are UTF-8");
    let name = text(name);
    let record = match short(0) {
        1 => Record::FileMade { folder: a, inode: b, name },
        2 => Record::FolderMade { folder: a, inode: b, name },
        3 => Record::LinkMade { folder: a, name, to: text(data) },
        4 => Record::SecondName { folder: a, inode: b, name },
        5 => Record::Written { inode: a, offset: b, data },
        6 => Record::Cut { inode: a, size: b },
        7 => Record::Renamed { folder: a, name, to: b, new: text(data) },
        8 => Record::Removed { folder: a, name },
        9 => Record::Synced { inode: a },
        MARK => Record::Mark(name),
        other => panic!("a record of kind {other}: disk_log.c and log.rs are not of one mind"),
    };
    (record, rest)
}

/// Adds a mark, by one call, as the library adds its records.
pub fn mark(log: &Path, name: &str) {
    let mut bytes = Vec::new();
    bytes.extend(MARK.to_le_bytes());
    bytes.extend(u32::try_from(name.len()).expect("a short name").to_le_bytes());
    bytes.extend([0; HEAD - 8]);
    bytes.extend(name.as_bytes());
    let file = File::options().append(true).create(true).open(log);
    let written = file.and_then(|mut file| file.write(&bytes)).expect("the log");
    assert_eq!(written, bytes.len());
}
