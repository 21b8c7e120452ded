//! Decodes GGUF's number formats to f32, block by block, in the order of ggml's own decoders.
//!
//! In: a tensor's bytes. Out: its elements. Each block holds 32 elements; `d` and `m` are f16.
//!
//! | format | block | element |
//! |---|---|---|
//! | q4_0 | d, 16 bytes | d × (nibble − 8) |
//! | q4_1 | d, m, 16 bytes | d × nibble + m |
//! | q8_0 | d, 32 bytes | d × signed byte |
//!
//! In the four-bit formats the low nibbles are elements 0 to 15 and the high ones 16 to 31.

use super::GgufError;

/// Elements of a block.
const BLOCK: usize = 32;

/// A number format, with ggml's number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q8_0,
}

impl Format {
    /// The format of ggml's number.
    ///
    /// # Errors
    /// A format that is not converted.
    pub fn of(number: u32) -> Result<Self, GgufError> {
        match number {
            0 => Ok(Self::F32),
            1 => Ok(Self::F16),
            2 => Ok(Self::Q4_0),
            3 => Ok(Self::Q4_1),
            8 => Ok(Self::Q8_0),
            other => Err(GgufError::Unsupported { what: format!("the number format {other}") }),
        }
    }

    /// Bytes that `elements` take, or None where they do not fill whole blocks.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (block_elements, block_bytes) = self.block();
        if !elements.is_multiple_of(block_elements) {
            return None;
        }
        (elements / block_elements).checked_mul(block_bytes)
    }

    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 => (1, 2),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
            Self::Q8_0 => (BLOCK, 34),
        }
    }

    /// The elements of whole blocks, in order.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let (block_elements, block_bytes) = self.block();
        let mut out = Vec::with_capacity(bytes.len() / block_bytes * block_elements);
        for block in bytes.chunks_exact(block_bytes) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half(block)),
                Self::Q4_0 => {
                    let d = half(block);
                    let value = |nibble: u8| d * (f32::from(nibble) - 8.0);
                    out.extend(block[2..].iter().map(|b| value(b & 15)));
                    out.extend(block[2..].iter().map(|b| value(b >> 4)));
                }
                Self::Q4_1 => {
                    let (d, m) = (half(block), half(&block[2..]));
                    // Two roundings, as ggml and its Python twin do: no fused multiply-add.
                    let value = |nibble: u8| d * f32::from(nibble) + m;
                    out.extend(block[4..].iter().map(|b| value(b & 15)));
                    out.extend(block[4..].iter().map(|b| value(b >> 4)));
                }
                Self::Q8_0 => {
                    let d = half(block);
                    out.extend(block[2..].iter().map(|b| d * f32::from(i8::from_le_bytes([*b]))));
                }
            }
        }
        out
    }
}

/// The f16 in the first two bytes.
fn half(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f32::from(bits & 1023);
    sign * match exponent {
        // Subnormal: no hidden one.
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        // Bit patterns by the IEEE table: 1, −2, largest, smallest normal, smallest subnormal.
        for (bits, value) in [
            (0x3c00u16, 1.0f32),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
        ] {
            assert_eq!(half(&bits.to_le_bytes()), value);
        }
        assert!(half(&0x7e00u16.to_le_bytes()).is_nan());
    }

    #[test]
    fn low_nibbles_come_first() {
        let mut block = vec![0x00, 0x38, 0x00, 0x3c]; // d = 0.5, m = 1
        block.extend([0x2f; 16]); // low nibble 15, high nibble 2
        let out = Format::Q4_1.decode(&block);
        assert_eq!(out[0], 0.5 * 15.0 + 1.0);
        assert_eq!(out[16], 0.5 * 2.0 + 1.0);
        assert_eq!(out.len(), 32);
        block.drain(2..4);
        let out = Format::Q4_0.decode(&block);
        assert_eq!((out[0], out[31]), (0.5 * 7.0, 0.5 * -6.0));
    }

    #[test]
    fn signed_bytes_keep_their_sign() {
        let mut block = vec![0x00, 0x40]; // d = 2
        block.extend([0xff; 32]);
        assert_eq!(Format::Q8_0.decode(&block), vec![-2.0; 32]);
        assert_eq!(Format::Q8_0.bytes(64), Some(68));
        assert_eq!(Format::Q8_0.bytes(33), None);
    }
}
