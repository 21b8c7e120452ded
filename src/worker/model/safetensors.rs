//! Safetensors files: their index, and tensors read straight into their own memory.
//!
//! In: a path. Out: [`WeightFile`], whose every offset was checked against the file's length before
//! anything is allocated, and tensors on the CPU in the file's own type. Read by position rather than
//! mapped: a file that shrinks under a map kills the process, a short read is an error, and both copy
//! each byte once. May not enter: what the tensors mean.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::errors::ModelError;

/// The longest header that is read: about a million tensors.
const HEADER_BYTES_MAX: u64 = 100 << 20;

/// Where one tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Hugging Face name.
    pub name: String,
    /// Element type in the file.
    pub kind: Kind,
    /// Sizes, outermost first.
    pub shape: Vec<i64>,
    /// First byte, counted from the file's beginning.
    offset: u64,
    /// Bytes.
    length: usize,
}

/// One safetensors file and its entries, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// The file.
    pub path: PathBuf,
    /// Its tensors.
    pub entries: Vec<Entry>,
}

impl WeightFile {
    /// Reads and checks the index of a file.
    ///
    /// Errors: `Read`; `Damaged` where header, offsets and length do not fit each other.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let damaged = |problem: String| ModelError::Damaged { path: path.to_owned(), problem };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut prefix = [0_u8; 8];
        if length < 8 {
            return Err(damaged(format!("the file has {length} bytes, too few for a header")));
        }
        file.read_exact_at(&mut prefix, 0).map_err(read)?;
        let header = u64::from_le_bytes(prefix);
        if header > HEADER_BYTES_MAX || header > length - 8 {
            return Err(damaged(format!(
                "the header claims {header} bytes, the file has {length}"
            )));
        }
        let mut text = vec![0; header as usize];
        file.read_exact_at(&mut text, 8).map_err(read)?;
        let index: Value = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("the header is no JSON ({error})")))?;
        let Value::Object(index) = index else {
            return Err(damaged("the header is no JSON object".to_owned()));
        };
        let mut entries = Vec::with_capacity(index.len());
        for (name, value) in index.iter().filter(|(name, _)| *name != "__metadata__") {
            entries.push(entry(name, value, 8 + header, length).map_err(&damaged)?);
        }
        entries.sort_by_key(|entry| entry.offset);
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Reads one tensor, in the file's type, on the CPU.
    ///
    /// Errors: `Read`, for a file that has become shorter since it was opened as well.
    pub fn read(&self, entry: &Entry) -> Result<Tensor, ModelError> {
        let read = |source| ModelError::Read { path: self.path.clone(), source };
        let file = File::open(&self.path).map_err(read)?;
        let tensor = Tensor::f_empty(&entry.shape, (entry.kind, Device::Cpu)).map_err(|error| {
            ModelError::Torch {
                dir: self.path.clone(),
                first_line: crate::errors::first_line(&error.to_string()),
            }
        })?;
        // SAFETY: the tensor was just made, is contiguous, owns `length` bytes (its shape times its
        // element size, checked in `entry`), and nothing else refers to it yet.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), entry.length) };
        file.read_exact_at(bytes, entry.offset).map_err(read)?;
        Ok(tensor)
    }
}

/// One entry of the header, or what is wrong with it.
fn entry(name: &str, value: &Value, start: u64, file_length: u64) -> Result<Entry, String> {
    let dtype = value.get("dtype").and_then(Value::as_str).unwrap_or("(none)");
    let kind = match dtype {
        "F64" => Kind::Double,
        "F32" => Kind::Float,
        "F16" => Kind::Half,
        "BF16" => Kind::BFloat16,
        "I64" => Kind::Int64,
        other => return Err(format!("tensor {name} has type {other}, not F32, F16 or BF16")),
    };
    let list = |key: &str| -> Option<Vec<u64>> {
        value.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
    };
    let shape = list("shape").ok_or_else(|| format!("tensor {name} has no shape"))?;
    let offsets = list("data_offsets").filter(|offsets| offsets.len() == 2);
    let offsets = offsets.ok_or_else(|| format!("tensor {name} has no data_offsets"))?;
    let elements = shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
    let bytes = elements.and_then(|count| count.checked_mul(kind.elt_size_in_bytes() as u64));
    let (begin, end) = (offsets[0], offsets[1]);
    if begin > end || bytes != Some(end - begin) {
        return Err(format!("tensor {name} of shape {shape:?} does not fill its bytes"));
    }
    let last = start.checked_add(end).filter(|last| *last <= file_length);
    if last.is_none() {
        return Err(format!(
            "tensor {name} ends at byte {}, the file after {file_length}",
            start.saturating_add(end)
        ));
    }
    Ok(Entry {
        name: name.to_owned(),
        kind,
        // Each size divides a byte count that fits the file, so it is far below 2^63; an empty
        // tensor's sizes are refused later, where its shape is compared with the model's.
        shape: shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect(),
        offset: start + begin,
        length: (end - begin) as usize,
    })
}
