//! Reads the header of a GGUF file: its keys, and where each tensor lies.
//!
//! In: the file's bytes. Out: [`Gguf`]. Every length is held against the file before it is
//! believed, so that a damaged file gives an error and not an allocation. No numbers are decoded
//! here.
//!
//! Layout (little-endian): magic, version, tensor count, key count, keys, tensor directory,
//! padding to the alignment, data. A tensor's first dimension is the one that lies together.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::GgufError;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: usize = 32;
/// More keys, tensors or nesting than any real model has.
const ENTRIES_MAX: u64 = 1 << 20;
const DEPTH_MAX: u32 = 4;

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// Where one tensor lies.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Fastest dimension first, as GGUF writes them.
    pub dims: Vec<usize>,
    /// The number of the number format, see [`super::quants::Format`].
    pub format: u32,
    /// From the start of the data.
    pub offset: usize,
}

/// A GGUF file in memory.
pub struct Gguf {
    path: PathBuf,
    bytes: Vec<u8>,
    keys: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data_start: usize,
}

impl Gguf {
    /// Reads the whole file and its directory.
    ///
    /// # Errors
    /// The file cannot be read, or its header is not GGUF version 2 or 3.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let bytes = std::fs::read(path).map_err(GgufError::io(path, "reading"))?;
        Self::parse(path, bytes)
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, GgufError> {
        let mut cursor = Cursor { path, bytes: &bytes, at: 0 };
        if cursor.take(4)? != MAGIC {
            return Err(cursor.malformed("the magic word GGUF is missing"));
        }
        if !matches!(cursor.u32()?, 2 | 3) {
            return Err(cursor.malformed("the format's version is neither 2 nor 3"));
        }
        let tensor_count = cursor.count()?;
        let key_count = cursor.count()?;
        let mut keys = HashMap::new();
        for _ in 0..key_count {
            let name = cursor.text()?;
            let kind = cursor.u32()?;
            keys.insert(name, cursor.value(kind, 0)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let (name, info) = cursor.tensor_info()?;
            tensors.insert(name, info);
        }
        let alignment = match keys.get("general.alignment") {
            Some(Value::Unsigned(n @ 1..=65_536)) => *n as usize,
            _ => ALIGNMENT_DEFAULT,
        };
        let data_start = cursor.at.next_multiple_of(alignment);
        Ok(Self { path: path.to_path_buf(), bytes, keys, tensors, data_start })
    }

    /// A whole number of the header.
    pub fn unsigned(&self, key: &str) -> Result<usize, GgufError> {
        match self.keys.get(key) {
            Some(Value::Unsigned(n)) => usize::try_from(*n).map_err(|_| missing(key)),
            Some(Value::Signed(n)) => usize::try_from(*n).map_err(|_| missing(key)),
            _ => Err(missing(key)),
        }
    }

    /// A fraction of the header.
    pub fn float(&self, key: &str) -> Result<f64, GgufError> {
        match self.keys.get(key) {
            Some(Value::Float(x)) => Ok(*x),
            _ => Err(missing(key)),
        }
    }

    /// A text of the header.
    pub fn text(&self, key: &str) -> Result<&str, GgufError> {
        match self.keys.get(key) {
            Some(Value::Text(s)) => Ok(s),
            _ => Err(missing(key)),
        }
    }

    /// A list of the header.
    pub fn list(&self, key: &str) -> Result<&[Value], GgufError> {
        match self.keys.get(key) {
            Some(Value::List(items)) => Ok(items),
            _ => Err(missing(key)),
        }
    }

    /// Whether a tensor of this name is there.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's place.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.tensors.get(name).ok_or_else(|| GgufError::Tensor {
            name: name.to_owned(),
            what: "is missing".to_owned(),
        })
    }

    /// `length` bytes of a tensor's data.
    pub fn data(&self, info: &TensorInfo, length: usize) -> Result<&[u8], GgufError> {
        let start = self.data_start.checked_add(info.offset);
        let end = start.and_then(|s| s.checked_add(length));
        start.zip(end).and_then(|(start, end)| self.bytes.get(start..end)).ok_or_else(|| {
            GgufError::Malformed {
                path: self.path.clone(),
                offset: self.bytes.len(),
                what: "a tensor's data goes past the end",
            }
        })
    }
}

fn missing(key: &str) -> GgufError {
    GgufError::Key { key: key.to_owned() }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn malformed(&self, what: &'static str) -> GgufError {
        GgufError::Malformed { path: self.path.to_path_buf(), offset: self.at, what }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], GgufError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.malformed("the file ends early"));
        };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Result<u64, GgufError> {
        let count = self.u64()?;
        if count > ENTRIES_MAX {
            return Err(self.malformed("a count is beyond any real model's"));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        let length = usize::try_from(length).map_err(|_| self.malformed("a text is too long"))?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if depth < DEPTH_MAX => {
                let kind = self.u32()?;
                let count = self.count()?;
                let mut items = Vec::new();
                for _ in 0..count {
                    items.push(self.value(kind, depth + 1)?);
                }
                Value::List(items)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.malformed("a value's type is unknown")),
        })
    }

    fn tensor_info(&mut self) -> Result<(String, TensorInfo), GgufError> {
        let name = self.text()?;
        let rank = self.u32()?;
        if rank > DEPTH_MAX {
            return Err(self.malformed("a tensor has more than four dimensions"));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            let dim = self.u64()?;
            dims.push(
                usize::try_from(dim).map_err(|_| self.malformed("a dimension is too large"))?,
            );
        }
        let format = self.u32()?;
        let offset = self.u64()?;
        let offset =
            usize::try_from(offset).map_err(|_| self.malformed("an offset is too large"))?;
        let info = TensorInfo { dims, format, offset };
        Ok((name, info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(keys: u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        bytes
    }

    #[test]
    fn keys_are_read_by_their_types() {
        let mut bytes = header(2);
        bytes.extend(key("a.count", 4, &7u32.to_le_bytes()));
        bytes.extend(key("a.eps", 6, &0.5f32.to_le_bytes()));
        let gguf = Gguf::parse(Path::new("x.gguf"), bytes).unwrap();
        assert_eq!(gguf.unsigned("a.count").unwrap(), 7);
        assert_eq!(gguf.float("a.eps").unwrap(), 0.5);
        assert!(gguf.text("a.count").is_err());
    }

    #[test]
    fn every_cut_of_a_header_is_an_error() {
        let mut bytes = header(1);
        bytes.extend(key("name", 8, &[3, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c']));
        assert!(Gguf::parse(Path::new("x.gguf"), bytes.clone()).is_ok());
        for length in 0..bytes.len() {
            assert!(Gguf::parse(Path::new("x.gguf"), bytes[..length].to_vec()).is_err());
        }
    }

    #[test]
    fn a_length_beyond_the_file_allocates_nothing() {
        let mut bytes = header(1);
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(Gguf::parse(Path::new("x.gguf"), bytes).is_err());
    }
}
