//! Gives GGUF's tensors the names, the shapes and the row order that a Hugging Face folder has.
//!
//! In: an open file and the model's sizes. Out: f32 tensors, one at a time. GGUF keeps the rows of
//! the query and key matrices with the two rotary halves interleaved; transformers wants first
//! half, then second half. A folder with the rows left as they are answers with noise.

use super::GgufError;
use super::quants::Format;
use super::reader::Gguf;

/// The sizes that shapes follow from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mlp: usize,
    pub vocabulary: usize,
}

/// How the rows of a matrix are to be put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    AsTheyAre,
    /// Un-interleave the rotary halves of this many heads.
    OfHeads(usize),
}

/// One tensor of the folder.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name in GGUF.
    pub source: String,
    /// Its name in model.safetensors.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    pub rows: Rows,
}

impl Sizes {
    /// Reads the sizes from the header.
    ///
    /// # Errors
    /// A key is missing, or the sizes do not fit each other.
    pub fn of(gguf: &Gguf) -> Result<Self, GgufError> {
        let width = gguf.unsigned("llama.embedding_length")?;
        let heads = gguf.unsigned("llama.attention.head_count")?;
        let head_dim = gguf
            .unsigned("llama.attention.key_length")
            .or_else(|_| gguf.unsigned("llama.rope.dimension_count"))?;
        let sizes = Self {
            layers: gguf.unsigned("llama.block_count")?,
            width,
            heads,
            kv_heads: gguf.unsigned("llama.attention.head_count_kv").unwrap_or(heads),
            head_dim,
            mlp: gguf.unsigned("llama.feed_forward_length")?,
            vocabulary: gguf.list("tokenizer.ggml.tokens")?.len(),
        };
        let whole =
            sizes.heads > 0 && sizes.kv_heads > 0 && sizes.heads.is_multiple_of(sizes.kv_heads);
        if !whole || !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(GgufError::Key { key: "llama.attention.head_count".to_owned() });
        }
        Ok(sizes)
    }

    /// All tensors of the folder, in the order of the forward pass.
    pub fn places(&self, gguf: &Gguf) -> Vec<Place> {
        let mut places =
            vec![place("token_embd", "model.embed_tokens", &[self.vocabulary, self.width])];
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        for layer in 0..self.layers {
            let from = |part: &str| format!("blk.{layer}.{part}");
            let to = |part: &str| format!("model.layers.{layer}.{part}");
            let mut add = |source: &str, name: &str, shape: &[usize], rows: Rows| {
                places.push(Place { rows, ..place(&from(source), &to(name), shape) });
            };
            add("attn_norm", "input_layernorm", &[self.width], Rows::AsTheyAre);
            add("attn_q", "self_attn.q_proj", &[q, self.width], Rows::OfHeads(self.heads));
            add("attn_k", "self_attn.k_proj", &[kv, self.width], Rows::OfHeads(self.kv_heads));
            add("attn_v", "self_attn.v_proj", &[kv, self.width], Rows::AsTheyAre);
            add("attn_output", "self_attn.o_proj", &[self.width, q], Rows::AsTheyAre);
            add("ffn_norm", "post_attention_layernorm", &[self.width], Rows::AsTheyAre);
            add("ffn_gate", "mlp.gate_proj", &[self.mlp, self.width], Rows::AsTheyAre);
            add("ffn_up", "mlp.up_proj", &[self.mlp, self.width], Rows::AsTheyAre);
            add("ffn_down", "mlp.down_proj", &[self.width, self.mlp], Rows::AsTheyAre);
        }
        places.push(place("output_norm", "model.norm", &[self.width]));
        if gguf.has_tensor("output.weight") {
            places.push(place("output", "lm_head", &[self.vocabulary, self.width]));
        }
        places
    }
}

fn place(source: &str, name: &str, shape: &[usize]) -> Place {
    Place {
        source: format!("{source}.weight"),
        name: format!("{name}.weight"),
        shape: shape.to_vec(),
        rows: Rows::AsTheyAre,
    }
}

/// A tensor's elements, rows in order.
///
/// # Errors
/// The tensor is missing, of another shape, or in a format that is not converted.
pub fn load(gguf: &Gguf, place: &Place) -> Result<Vec<f32>, GgufError> {
    let info = gguf.tensor(&place.source)?;
    let found: Vec<usize> = info.dims.iter().rev().copied().collect();
    let wrong = |what: String| GgufError::Tensor { name: place.source.clone(), what };
    if found != place.shape {
        return Err(wrong(format!("has shape {found:?} instead of {:?}", place.shape)));
    }
    let format = Format::of(info.format)?;
    let elements = found.iter().product();
    let length =
        format.bytes(elements).ok_or_else(|| wrong("does not fill its blocks".to_owned()))?;
    let values = format.decode(gguf.data(info, length)?);
    Ok(match place.rows {
        Rows::AsTheyAre => values,
        Rows::OfHeads(heads) => separate_halves(&values, heads, place.shape[0], place.shape[1]),
    })
}

/// Within each head, row 2i goes to i and row 2i+1 to i + half.
fn separate_halves(values: &[f32], heads: usize, rows: usize, columns: usize) -> Vec<f32> {
    let head_dim = rows / heads;
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for side in 0..2 {
            for i in 0..half {
                let row = head * head_dim + 2 * i + side;
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_halves_are_separated_within_each_head() {
        // Two heads of four rows, one column: 0 1 2 3 | 4 5 6 7 becomes 0 2 1 3 | 4 6 5 7.
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(separate_halves(&values, 2, 8, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
