//! Token ids and log-probs as BLOBs: little-endian u32 and f32, so that a row is the same on every
//! machine.
//!
//! In and out: slices and bytes. May not enter: anything else.

pub(crate) fn from_ids(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

pub(crate) fn to_ids(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
}

pub(crate) fn from_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let ids = [0, 1, 258, u32::MAX];
        assert_eq!(from_ids(&[258]), [2, 1, 0, 0]);
        assert_eq!(to_ids(&from_ids(&ids)), ids);
        let values = [0.0_f32, -1.5, f32::MIN_POSITIVE];
        assert_eq!(to_floats(&from_floats(&values)), values);
    }
}
