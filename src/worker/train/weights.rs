//! Safetensors files, written tensor by tensor.
//!
//! In: names, types, shapes and a way to get each tensor. Out: one file, the tensors in the order
//! given; at most one tensor is in memory beside its source. The bytes depend on the contents alone.
//! May not enter: what the tensors mean, where the folder goes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::error::TrainError;
use crate::checkpoint::CheckpointError;

/// One tensor of a file to be.
pub struct Piece<'a> {
    /// Its name.
    pub name: String,
    /// The type it is stored in.
    pub kind: Kind,
    /// Its sizes.
    pub shape: Vec<i64>,
    /// Gets it, in any type and on any device.
    pub tensor: Box<dyn Fn() -> Result<Tensor, TrainError> + 'a>,
}

impl<'a> Piece<'a> {
    /// A piece of a tensor that is there already.
    #[must_use]
    pub fn of(name: String, kind: Kind, tensor: &'a Tensor) -> Self {
        Self {
            name,
            kind,
            shape: tensor.size(),
            tensor: Box::new(move || Ok(tensor.shallow_clone())),
        }
    }

    /// Bytes that it takes in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let elements: i64 = self.shape.iter().product();
        u64::try_from(elements).unwrap_or(0) * self.kind.elt_size_in_bytes() as u64
    }
}

/// Writes `pieces` to a new file.
///
/// # Errors
/// What the system says, or what a piece's source says.
pub fn write(path: &Path, pieces: &[Piece<'_>]) -> Result<(), TrainError> {
    let io = |source| {
        TrainError::from(CheckpointError::Io { path: path.to_owned(), action: "written", source })
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let file = File::options().write(true).create_new(true).open(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header = header(pieces).map_err(io)?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    let mut buffer = Vec::new();
    for piece in pieces {
        let tensor = (piece.tensor)()?;
        bytes_of(&tensor, piece.kind, &mut buffer);
        if buffer.len() as u64 != piece.bytes() {
            let problem = format!("tensor {} has {} bytes", piece.name, buffer.len());
            return Err(io(io::Error::other(problem)));
        }
        out.write_all(&buffer).map_err(io)?;
    }
    out.flush().map_err(io)
}

/// The little-endian bytes of a tensor in `kind`.
fn bytes_of(tensor: &Tensor, kind: Kind, buffer: &mut Vec<u8>) {
    let _no_grad = tch::no_grad_guard();
    let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(kind).contiguous();
    let elements = tensor.numel();
    buffer.resize(elements * kind.elt_size_in_bytes(), 0);
    tensor.copy_data_u8(buffer, elements);
}

/// The header: JSON, padded with spaces so that the data begins at a multiple of 8.
fn header(pieces: &[Piece<'_>]) -> io::Result<Vec<u8>> {
    let mut table = Map::new();
    table.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0_u64;
    for piece in pieces {
        let end = offset + piece.bytes();
        let entry = json!({
            "dtype": dtype(piece.kind)?,
            "shape": piece.shape,
            "data_offsets": [offset, end],
        });
        table.insert(piece.name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(table))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

fn dtype(kind: Kind) -> io::Result<&'static str> {
    match kind {
        Kind::Double => Ok("F64"),
        Kind::Float => Ok("F32"),
        Kind::Half => Ok("F16"),
        Kind::BFloat16 => Ok("BF16"),
        other => Err(io::Error::other(format!("weights of type {other:?} cannot be stored"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::safetensors::WeightFile;

    #[test]
    fn what_is_written_is_read_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/weights.safetensors");
        let one = Tensor::from_slice(&[1.5_f32, -0.1, 3e-9]).view([3, 1]);
        let two = one.to_kind(Kind::BFloat16);
        let pieces =
            [Piece::of("b".into(), Kind::Float, &one), Piece::of("a".into(), Kind::BFloat16, &one)];
        write(&path, &pieces).unwrap();
        let file = WeightFile::open(&path).unwrap();
        let names: Vec<_> = file.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert!(file.read(&file.entries[0]).unwrap().equal(&one));
        assert!(file.read(&file.entries[1]).unwrap().equal(&two));
        assert_eq!(std::fs::metadata(&path).unwrap().len() % 2, 0);
        assert!(write(&path, &pieces).is_err(), "an existing file is never overwritten");
    }
}
